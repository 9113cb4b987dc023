"""A node of a cluster that plays episodes, and what it tells the owner of the run of them; knows no Ray and no journal.

What happens is put into an outbox, and the owner says what it has written down: a turn begins when the turn before is safe with the
owner, as on one machine. Turns that arrive together are acknowledged together, so a node costs one message at a time, not one a turn.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial

from tasks import Task

from .actor import Prepared
from .config import RolloutConfig
from .rig import Rig, Slot
from .rollout import run_episode
from .types import Episode, Policy, Turn


@dataclass(frozen=True, slots=True)
class Order:
    """An episode that a node shall play."""

    ticket: int
    task: Task
    slot: Slot
    rollout: RolloutConfig
    turns: tuple[Turn, ...]
    """Recorded by an earlier attempt: it goes on after them."""
    engine: int
    version: int
    """Of the policy's weights when the order was given."""


@dataclass(frozen=True, slots=True)
class Took:
    """A turn has ended."""

    ticket: int
    turn: Turn
    """Its prompt begins after `known` tokens ..."""
    known: int = 0
    """... which are the beginning of the prompt of the turn before."""


@dataclass(frozen=True, slots=True)
class CutBack:
    """All turns but the first `keep` are of no use."""

    ticket: int
    keep: int
    why: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The episode, or what ended it that is no episode's failure."""

    ticket: int
    result: Episode | BaseException
    told: int = 0
    """So many of the first turns are left out of it, because they were told one by one."""


Event = Took | CutBack | Finished


class Outbox:
    """Events in order, each kept until the owner has it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._kept = 0
        """Events that the owner has written down."""
        self._news = asyncio.Event()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def count(self) -> int:
        """Events so far."""
        return self._kept + len(self._events)

    def put(self, event: Event) -> None:
        """One more."""
        self._events.append(event)
        self._news.set()

    async def safe(self, count: int) -> None:
        """Wait until the owner has so many."""
        if self._kept < count:
            self._waiting.append((count, asyncio.get_running_loop().create_future()))
            await self._waiting[-1][1]

    async def take(self, kept: int, seconds: float) -> list[Event]:
        """The owner has `kept`, and gets what came since; nothing after `seconds` without news."""
        del self._events[: kept - self._kept]
        self._kept = kept
        for _, future in (safe := [one for one in self._waiting if one[0] <= kept]):
            if not future.done():  # its episode may have been cancelled
                future.set_result(None)
        self._waiting = [one for one in self._waiting if one not in safe]
        if not self._events:
            self._news.clear()
            await asyncio.wait([news := asyncio.ensure_future(self._news.wait())], timeout=seconds)
            news.cancel()
        return list(self._events)


class NodeDiary:
    """The diary of one episode: what is recorded goes to the owner."""

    def __init__(self, outbox: Outbox, order: Order, policy: Policy) -> None:
        self._outbox, self._ticket, self._policy = outbox, order.ticket, policy
        self._turns = list(order.turns)

    def issue(self, episode_id: str, group_id: str, instance_id: str, step: int) -> None:
        """The owner has noted that, before it gave the order."""

    def turns(self, episode_id: str) -> tuple[Turn, ...]:
        """So far."""
        return tuple(self._turns)

    def record_turn(self, episode_id: str, turns: Sequence[Turn]) -> None:
        """Into the outbox. A version that a turn was sampled by exists, whatever was known here before."""
        self._policy.version = max(self._policy.version, turns[-1].completion.newest)
        self._outbox.put(shorten(self._ticket, turns[-1], self._turns[-1] if self._turns else None))
        self._turns.append(turns[-1])

    def cut(self, episode_id: str, keep: int, why: str) -> None:
        """Here and at the owner's."""
        del self._turns[keep:]
        self._outbox.put(CutBack(self._ticket, keep, why))

    async def kept(self, episode_id: str) -> None:
        """Wait for the owner."""
        await self._outbox.safe(self._outbox.count)


class RolloutNode:
    """Machines and graders of one node: opened by `open`, closed by `close`."""

    def __init__(self, rig: Callable[[], AbstractAsyncContextManager[Rig]], policies: Sequence[Policy]) -> None:
        """policies: one for each engine, in the order in which the owner numbers them."""
        self._open_rig, self._policies = rig, policies
        self._outbox = Outbox()
        self._playing: dict[int, asyncio.Task[Episode]] = {}
        self._closing = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._rig: Rig | None = None

    async def open(self) -> None:
        """Make the rig ready."""
        ready = asyncio.Event()
        self._life = asyncio.create_task(self._live(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self._life, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._life.done():
            self._life.result()

    async def _live(self, ready: asyncio.Event) -> None:
        """One task opens the rig and closes it."""
        async with self._open_rig() as self._rig:
            ready.set()
            await self._closing.wait()

    async def begin(self, order: Order) -> None:
        """Play an episode; its events carry the order's ticket."""
        assert self._rig is not None
        policy = self._policies[order.engine]
        policy.version = max(policy.version, order.version)
        diary = NodeDiary(self._outbox, order, policy)
        rig = replace(self._rig, rollout=order.rollout, diary=diary)
        task = asyncio.create_task(run_episode(policy, order.task, rig, order.slot), name=order.slot.episode_id)
        self._playing[order.ticket] = task
        task.add_done_callback(partial(self._tell, order.ticket, diary))

    def _tell(self, ticket: int, diary: NodeDiary, task: asyncio.Task[Episode]) -> None:
        """An exception is the owner's to raise: there it ends the run, with its traceback."""
        self._playing.pop(ticket, None)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._outbox.put(Finished(ticket, error))
        else:
            episode, told = task.result(), len(diary.turns(""))
            self._outbox.put(Finished(ticket, replace(episode, turns=episode.turns[told:]), told))

    async def stop(self, ticket: int) -> None:
        """The owner wants an episode no more."""
        if task := self._playing.pop(ticket, None):
            task.cancel()

    async def take(self, kept: int, seconds: float) -> list[Event]:
        """What happened since the first `kept` events."""
        return await self._outbox.take(kept, seconds)

    async def close(self) -> None:
        """End the episodes and tear down the machines."""
        for task in (playing := list(self._playing.values())):
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        self._closing.set()
        if self._life is not None:
            await self._life


def shorten(ticket: int, turn: Turn, before: Turn | None) -> Took:
    """What the owner does not know yet of a turn: a prompt mostly begins with the one before, and an episode's prompts are long."""
    if before is None or turn.prompt[: len(before.prompt)] != before.prompt:
        return Took(ticket, turn)
    return Took(ticket, replace(turn, prompt=turn.prompt[len(before.prompt) :]), len(before.prompt))


def lengthen(event: Took, turns: Sequence[Turn]) -> Turn:
    """The whole turn again; `turns`: those before it."""
    return replace(event.turn, prompt=turns[-1].prompt[: event.known] + event.turn.prompt) if event.known else event.turn


def agree(prepared: Sequence[Prepared]) -> Prepared:
    """What several nodes have prepared of the same tasks: what one of them must not attempt, none does."""
    first, *others = prepared
    refused = {name: task for one in others for name, task in one.tasks.items() if task.unusable}
    return replace(first, tasks={**first.tasks, **refused})
