"""One episode: prompt -> action -> observation until it stops, then its diff is graded in a fresh sandbox.

Knows policies, tasks and sandboxes by their faces; nothing of credit or training. Every way to end has a Stop. What the
machine, the engine or the grader did wrong is tried again and then recorded as Stop.INFRA without a reward; what the agent did
to its own machine is graded.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from sandbox import ResourceExhausted, Sandbox, SandboxError, SealError
from tasks import Outcome, Task, Verdict

from .action import ASK_USER, FormatError
from .diary import NoDiary, recorded_turns
from .gather import gather
from .opening import Opening
from .probe import hash_tree, look
from .prompt import Chat
from .redo import USED_UP, redo
from .reward import score
from .rig import Machines as Machines
from .rig import Rig as Rig
from .rig import Seat as Seat
from .rig import Slot as Slot
from .rig import derive_seed as derive_seed
from .tools import Shown, run_tool
from .types import Completion, ContextFull, Episode, Future, Policy, PolicyError, Stop, Turn

T = TypeVar("T")
CHANGING = frozenset({"bash", "edit"})
"""Tools after which the tree is hashed."""


@dataclass(slots=True)
class _Record:
    """An episode as far as it has come; it survives the exception that ends an attempt."""

    turns: list[Turn] = field(default_factory=list)
    patch: str = ""
    error: str = ""
    retries: int = 0
    passed: float | None = None

    def count_retry(self, state: RetryCallState) -> None:
        """Called by tenacity before each new attempt."""
        self.retries += 1


async def run_episode(policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
    """Attempt a task and grade it; each of the two is tried again infra_retries times when the infrastructure fails."""
    play_it = rig.elsewhere or play_here
    episode = await score(rig.channel, task, await play_it(policy, task, rig, slot))
    return await rig.jury(task, episode) if rig.jury else episode


async def play_here(policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
    """On a machine of this process."""
    started = time.monotonic()
    record = _Record()
    try:
        if task.unusable:
            raise SealError(task.unusable)
        rig.diary.issue(slot.episode_id, slot.group_id, task.instance_id, slot.step)
        stop = await retry(rig, record.count_retry, partial(_attempt, policy, task, rig, slot, record))
        verdict = await retry(rig, record.count_retry, partial(_judge, task, rig, stop, record.patch))
    except (SandboxError, PolicyError) as failure:
        stop, record.error = Stop.INFRA, f"{type(failure).__name__}: {failure}"
        verdict = Verdict(task.instance_id, Outcome.INFRA, record.error)
    return Episode(
        slot.episode_id,
        slot.group_id,
        task.instance_id,
        tuple(record.turns),
        stop,
        record.patch,
        verdict,
        error=record.error,
        retries=record.retries,
        seconds=time.monotonic() - started,
        prefix=slot.prefix,
        passed=record.passed,
        plain_start=rig.chat.plain_start(task),
        scored=rig.user.judge([*slot.prefix, *record.turns]) if rig.user and verdict.reward is not None else None,
    )


async def retry(rig: Rig, count: Callable[[RetryCallState], None], attempt: Callable[[], Awaitable[T]]) -> T:
    """What the attempt returns; it is made again rollout.infra_retries times, each counted, while the infrastructure fails it."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(rig.rollout.infra_retries + 1),
        wait=wait_exponential(multiplier=rig.retry_seconds, max=60),
        retry=retry_if_exception_type((SandboxError, PolicyError)),
        before_sleep=count,
        reraise=True,
    )
    return await retrying(attempt)


async def _judge(task: Task, rig: Rig, stop: Stop, patch: str) -> Verdict:
    if stop is Stop.RESOURCE and not patch:
        return Verdict(task.instance_id, Outcome.NO_PATCH, "the agent used up its machine; no diff could be read from it")
    verdict = await rig.grade(task, patch)
    if verdict.outcome is Outcome.INFRA:
        raise SandboxError(f"grading: {verdict.reason}")
    return verdict


async def _attempt(policy: Policy, task: Task, rig: Rig, slot: Slot, record: _Record) -> Stop:
    """Play on a fresh machine and take its diff; what an interrupted attempt has recorded is carried out again first.

    Where that comes out differently the record is of no use: the episode begins again, on another machine. A machine is free again
    before the patch is graded.
    """
    record.turns, record.patch = list(recorded_turns(rig.diary, slot.episode_id, policy.version)), ""
    opening = Opening(partial(rig.chat.start_prompt, task), partial(_sample, policy, rig, slot, 0), rig.context)
    begun = None if slot.prefix or record.turns else opening.begin
    async with opening, rig.machines.lease(task.image, begun=begun) as sandbox:
        latest = time.monotonic() + rig.episode_seconds
        try:
            different = await redo(sandbox, [*slot.prefix, *record.turns], rig.rollout, rig.command_seconds)
            if different is None:
                deadline = min(latest, time.monotonic() + rig.episode_seconds - _spent(record.turns))
                stop = await play(policy, task, Seat(sandbox, rig, slot, record.turns, deadline, opening))
                record.patch = await rig.diff(sandbox, task.image)
                record.passed = await look_at_end(sandbox, rig)
                return stop
        except ResourceExhausted as failure:
            record.error = str(failure)
            record.patch = await _salvage(sandbox, task, rig)
            return Stop.RESOURCE
    if different.turn <= len(slot.prefix):
        raise SandboxError(f"{slot.episode_id}: the turns that it starts from do not replay: {different}")
    rig.diary.cut(slot.episode_id, 0, f"begins again: {different}")
    return await _attempt(policy, task, rig, slot, record)


async def look_at_end(sandbox: Sandbox, rig: Rig) -> float | None:
    """The share of visible tests that pass after the last turn, where that is what is rewarded."""
    if not rig.sees_end:
        return None
    return (await look(sandbox, rig.rollout.model_copy(update={"anchors": False}), rig.command_seconds, first=False)).passed


def _spent(turns: Sequence[Turn]) -> float:
    """Seconds that turns took when they were played."""
    return sum(turn.seconds_model + turn.seconds_tool for turn in turns)


async def look_ahead(policy: Policy, task: Task, seat: Seat) -> tuple[Future, ...]:
    """How rollout.continuations episodes end that go on from here on forks; SandboxError or PolicyError where one comes to no grade."""
    count = seat.rig.rollout.continuations
    return tuple(await gather([_go_on(policy, task, seat, number) for number in range(count)]))


async def _go_on(policy: Policy, task: Task, seat: Seat, number: int) -> Future:
    """One of them: seeds of its own, what is left of the episode's time, no probes, no diary and no continuations."""
    plain = seat.rig.rollout.model_copy(update={"continuations": 0, "anchors": False, "trees": False, "visible_tests": ""})
    rig = replace(seat.rig, rollout=plain, episode_seconds=max(seat.deadline - time.monotonic(), 1.0), diary=NoDiary())
    slot = replace(seat.slot, episode_id=f"{seat.slot.episode_id}/{len(seat.turns)}.{number}", prefix=tuple(seat.played))
    record = _Record()
    stop = await retry(rig, record.count_retry, partial(_play_fork, policy, task, replace(seat, rig=rig, slot=slot), record))
    verdict = await retry(rig, record.count_retry, partial(_judge, task, rig, stop, record.patch))
    if verdict.reward is None:
        raise SandboxError(f"{slot.episode_id}: no grade")
    return Future(verdict.reward, len(slot.prefix) + len(record.turns))


async def _play_fork(policy: Policy, task: Task, origin: Seat, record: _Record) -> Stop:
    """Play on a fork of the origin's machine and take its diff."""
    rig, record.turns, record.patch = origin.rig, [], ""
    if rig.forks is None:
        raise ValueError("rollout.continuations needs machines for forks")
    async with rig.forks.lease(task.image, like=origin.sandbox) as sandbox:
        try:
            stop = await play(policy, task, Seat(sandbox, rig, origin.slot, record.turns, time.monotonic() + rig.episode_seconds))
            record.patch = await rig.diff(sandbox, task.image)
            return stop
        except ResourceExhausted:
            record.patch = await _salvage(sandbox, task, rig)
            return Stop.RESOURCE


async def _salvage(sandbox: Sandbox, task: Task, rig: Rig) -> str:
    """The diff of a machine that its agent has used up, where it can still be read. That it cannot is the agent's doing."""
    try:
        return await rig.diff(sandbox, task.image)
    except (ResourceExhausted, SandboxError):
        return ""


async def play(policy: Policy, task: Task, seat: Seat) -> Stop:
    """Turn after turn until something ends the episode."""
    prompt = _next_prompt(task, seat)
    while (stop := _limit(seat, prompt)) is None:
        try:
            async with asyncio.timeout(seat.deadline - time.monotonic()):
                completion, seconds = await _answer(policy, prompt, seat)
        except TimeoutError:
            return Stop.TIME
        except ContextFull:
            return Stop.CONTEXT_FULL
        started = time.monotonic()
        futures = await look_ahead(policy, task, seat)
        seat = replace(seat, deadline=seat.deadline + time.monotonic() - started)  # the episode's own clock stands still meanwhile
        heard = (await _take_turn(Turn(tuple(prompt), completion, None, "", seconds, futures=futures), task, seat)).heard
        seat = replace(seat, deadline=seat.deadline + (heard.seconds if heard else 0.0))  # and while the user thinks
        prompt = _next_prompt(task, seat)
    return stop


def _next_prompt(task: Task, seat: Seat) -> list[int]:
    chat = seat.rig.chat
    if not seat.played:
        return seat.opening.prompt if seat.opening else chat.start_prompt(task)
    last = seat.played[-1]
    return chat.extend(last.prompt, last.completion, last.observation)


def _limit(seat: Seat, prompt: list[int]) -> Stop | None:
    """The end that the turns so far have come to, or the limit that is reached before this prompt is sent, if any."""
    played = seat.played
    if played and (call := played[-1].call) is not None and call.name == "submit":
        return Stop.SUBMITTED
    if time.monotonic() >= seat.deadline:
        return Stop.TIME
    errors = seat.rig.rollout.format_errors
    if len(played) >= errors and all(turn.call is None for turn in played[-errors:]):
        return Stop.FORMAT
    if len(played) >= seat.rig.rollout.max_turns:
        return Stop.MAX_TURNS
    return Stop.CONTEXT_FULL if len(prompt) >= seat.rig.context else None


async def _answer(policy: Policy, prompt: list[int], seat: Seat) -> tuple[Completion, float]:
    if seat.opening is not None and not seat.played:
        return await seat.opening.answer()
    return await _sample(policy, seat.rig, seat.slot, len(seat.turns), prompt)


async def _sample(policy: Policy, rig: Rig, slot: Slot, turn: int, prompt: list[int]) -> tuple[Completion, float]:
    started = time.monotonic()
    room = min(rig.rollout.max_new_tokens, rig.context - len(prompt))
    completion = await policy.sample(prompt, room, derive_seed(slot, turn))
    return completion, time.monotonic() - started


async def _take_turn(turn: Turn, task: Task, seat: Seat) -> Turn:
    """Carry out the action of a turn's completion and record it, that which ends the machine as well: then ResourceExhausted."""
    seen = await look(seat.sandbox, seat.rig.rollout, _limit_command(seat), first=not seat.played)
    failure: ResourceExhausted | None = None
    turn = _read_action(turn, seat.rig.chat)
    try:
        turn = await _act(turn, task, seat)
        if seat.rig.rollout.trees and turn.call is not None and turn.call.name in CHANGING:
            turn = replace(turn, tree=await hash_tree(seat.sandbox, _limit_command(seat)))
    except ResourceExhausted as error:
        failure = error
        turn = turn if turn.observation else replace(turn, observation=f"{USED_UP}{error}]")
    seat.turns.append(replace(turn, anchor=seen.anchor, passed=seen.passed))
    seat.rig.diary.record_turn(seat.slot.episode_id, seat.turns)
    await seat.rig.diary.kept(seat.slot.episode_id)
    if failure is not None:
        raise failure
    return turn


def _read_action(turn: Turn, chat: Chat) -> Turn:
    """The turn as far as it is known before anything is done: its call, or what is wrong with it."""
    call = chat.parse(turn.completion.text)
    if isinstance(call, FormatError):
        cut = "" if turn.completion.stopped else " (The answer was cut at the token limit; be shorter.)"
        return replace(turn, observation=f"Format error: {call.message}{cut}")
    return replace(turn, call=call)


async def _act(turn: Turn, task: Task, seat: Seat) -> Turn:
    """The turn with its action carried out."""
    if turn.call is None:
        return turn
    if turn.call.name == ASK_USER:
        assert seat.rig.user is not None
        return await seat.rig.user.hear(task, turn, seat.played, seat.slot.episode_id, seat.rig.rollout.observation_chars)
    started = time.monotonic()
    observation = await run_tool(seat.sandbox, turn.call, Shown(seat.rig.rollout.observation_chars, _limit_command(seat)))
    return replace(turn, observation=observation, seconds_tool=time.monotonic() - started)


def _limit_command(seat: Seat) -> float:
    """Seconds that the next command may take."""
    return min(seat.rig.command_seconds, max(seat.deadline - time.monotonic(), 1.0))
