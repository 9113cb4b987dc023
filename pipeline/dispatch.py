"""Episodes dealt to the nodes of a cluster, as their owner sees it; knows nodes by a Protocol, and no Ray.

A node that dies, or says nothing for SILENCE seconds, is lost: its episodes go on elsewhere after their last recorded turn, which the
journal has. What such a node may still be doing is heard by no one, so nothing is counted twice.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tasks import Task

from .diary import Diary, recorded_turns
from .node import CutBack, Event, Finished, Order, Took, lengthen
from .rig import Rig, Slot
from .types import Episode, NodesLost, Policy, Turn

log = logging.getLogger(__name__)
WAIT = 5.0
"""Seconds after which a node without news says that it is alive."""
SILENCE = 60.0
"""A node that does not answer for so long is lost."""


class NodeLost(Exception):
    """A node has died or does not answer."""


class Node(Protocol):
    """A RolloutNode somewhere else. Each call raises NodeLost when the node is gone."""

    name: str

    async def begin(self, order: Order) -> None:
        """Play an episode."""
        ...

    async def stop(self, ticket: int) -> None:
        """It is wanted no more."""
        ...

    async def take(self, kept: int, seconds: float) -> Sequence[Event]:
        """Its events after the first `kept`, which are safe with us."""
        ...

    def kill(self) -> None:
        """End it, whatever it does."""
        ...


@dataclass(slots=True)
class _Played:
    """An episode that a node plays."""

    slot: Slot
    diary: Diary
    turns: list[Turn]
    done: asyncio.Future[Episode]


@dataclass(slots=True)
class _Line:
    """The connection to one node."""

    node: Node
    lost: bool = False
    playing: dict[int, _Played] = field(default_factory=dict)


class Dispatcher:
    """Plays an episode on the first node that has room, in the order of asking. Open it with `async with`: it listens to the nodes
    meanwhile."""

    def __init__(self, nodes: Sequence[Node], policies: Sequence[Policy], room: int) -> None:
        """policies: in the order in which the nodes know them. room: episodes at a time on each node."""
        self._lines = [_Line(node) for node in nodes]
        self._numbers = {id(policy): number for number, policy in enumerate(policies)}
        self._tickets = itertools.count()
        self._places: asyncio.Queue[_Line | None] = asyncio.Queue()
        """One entry for each episode that a node could take now; None, which stays, when all nodes are lost."""
        for line in self._lines * room:
            self._places.put_nowait(line)
        self._listening: list[asyncio.Task[None]] = []

    async def __call__(self, policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
        """The episode; NodesLost when no node is left."""
        while True:
            line = await self._find_room()
            try:
                return await self._play(line, policy, task, rig, slot)
            except NodeLost as failure:
                self._lose(line, str(failure))
                log.warning("%s goes on elsewhere: %s", slot.episode_id, failure)

    async def _find_room(self) -> _Line:
        while (line := await self._places.get()) is not None:
            if not line.lost:
                return line
        self._places.put_nowait(None)
        raise NodesLost(f"all {len(self._lines)} nodes on which episodes play are lost")

    async def _play(self, line: _Line, policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
        turns, ticket = recorded_turns(rig.diary, slot.episode_id, policy.version), next(self._tickets)
        rig.diary.issue(slot.episode_id, slot.group_id, task.instance_id, slot.step)
        played = line.playing[ticket] = _Played(slot, rig.diary, list(turns), asyncio.get_running_loop().create_future())
        order = Order(ticket, task, slot, rig.rollout, turns, self._numbers[id(policy)], policy.version)
        try:
            await line.node.begin(order)
            return await played.done
        except asyncio.CancelledError:
            await asyncio.shield(_stop(line.node, ticket))
            raise
        finally:
            line.playing.pop(ticket, None)
            self._places.put_nowait(line)

    async def _listen(self, line: _Line) -> None:
        """Write down what a node tells, until it is lost."""
        kept = 0
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    events = await line.node.take(kept, WAIT)
                for event in events:
                    _note(event, line.playing)
                kept += len(events)
        except (NodeLost, TimeoutError) as failure:
            self._lose(line, str(failure) or f"no answer for {SILENCE:.0f} s")
        except asyncio.CancelledError:  # we are closed, and so are our episodes
            raise
        except BaseException as failure:  # the journal cannot be written, or we are wrong: who waits for this node hears of it
            self._lose(line, repr(failure), failure)
            raise

    def _lose(self, line: _Line, why: str, cause: BaseException | None = None) -> None:
        """A node is gone: its episodes hear of it, and who waits for room when there is none left."""
        if line.lost:
            return
        line.lost = True
        line.node.kill()
        for played in line.playing.values():
            if not played.done.done():
                played.done.set_exception(cause or NodeLost(f"node {line.node.name} is lost: {why}"))
        if all(other.lost for other in self._lines):
            self._places.put_nowait(None)

    async def __aenter__(self) -> "Dispatcher":
        self._listening = [asyncio.create_task(self._listen(line), name=f"listen to {line.node.name}") for line in self._lines]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)


def _note(event: Event, playing: dict[int, _Played]) -> None:
    """One event into the diary of its episode."""
    played = playing.get(event.ticket)
    if played is None or played.done.done():
        return
    match event:
        case Took():
            played.turns.append(lengthen(event, played.turns))
            played.diary.record_turn(played.slot.episode_id, played.turns)
        case CutBack():
            del played.turns[event.keep :]
            played.diary.cut(played.slot.episode_id, event.keep, event.why)
        case Finished(result=BaseException() as error):
            played.done.set_exception(error)
        case Finished(result=Episode() as episode):
            told = tuple(played.turns[: event.told])
            if len(told) < event.told:
                raise ValueError(f"{played.slot.episode_id}: {event.told} turns were told, and {len(told)} came")
            played.done.set_result(replace(episode, turns=told + episode.turns))


async def _stop(node: Node, ticket: int) -> None:
    try:
        async with asyncio.timeout(WAIT):
            await node.stop(ticket)
    except (NodeLost, TimeoutError):
        pass  # then there is nothing to stop, or _listen finds out
