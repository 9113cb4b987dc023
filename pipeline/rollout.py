"""One episode: prompt -> action -> observation until it stops, then its diff is graded in a fresh sandbox.

Knows policies, tasks and sandboxes by their faces; nothing of credit or training. Every way to end has a Stop. What the
machine, the engine or the grader did wrong is tried again and then recorded as Stop.INFRA without a reward; what the agent did
to its own machine is graded.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from sandbox import Image, ResourceExhausted, Sandbox, SandboxError, SealError
from tasks import Outcome, Task, Verdict

from .action import FormatError
from .config import RolloutConfig
from .probe import look
from .prompt import Chat
from .tools import Shown, run_tool
from .types import Completion, ContextFull, Episode, Policy, PolicyError, Stop, Turn

T = TypeVar("T")


class Machines(Protocol):
    """Where an episode's machine comes from (sandbox.Pool)."""

    def lease(self, image: Image) -> AbstractAsyncContextManager[Sandbox]:
        """A fresh machine, torn down at the end of the block whatever happens."""
        ...


@dataclass(frozen=True, slots=True)
class Rig:
    """What every episode of a run is made with."""

    chat: Chat
    machines: Machines
    diff: Callable[[Sandbox, Image], Awaitable[str]]
    """What the agent changed, taken inside its sandbox."""
    grade: Callable[[Task, str], Awaitable[Verdict]]
    """A patch -> a fresh sandbox -> a verdict."""
    rollout: RolloutConfig
    context: int
    """Tokens of one episode, prompt and observations included."""
    command_seconds: float
    episode_seconds: float
    """From the first prompt to the last turn; the machine must live longer, so that its diff can still be taken."""
    retry_seconds: float = 1.0
    """Wait before an attempt that follows a failure of the infrastructure; doubled each time."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Which episode: its ids, and the seed that all its sampling seeds derive from."""

    episode_id: str
    group_id: str
    seed: int = 0


@dataclass(slots=True)
class _Record:
    """An episode as far as it has come; it survives the exception that ends an attempt."""

    turns: list[Turn] = field(default_factory=list)
    patch: str = ""
    error: str = ""
    retries: int = 0

    def count_retry(self, state: RetryCallState) -> None:
        """Called by tenacity before each new attempt."""
        self.retries += 1


async def run_episode(policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
    """Attempt a task and grade it; each of the two is tried again infra_retries times when the infrastructure fails."""
    started = time.monotonic()
    record = _Record()
    try:
        if task.unusable:
            raise SealError(task.unusable)
        stop = await _retry(rig, record, partial(_attempt, policy, task, rig, slot, record))
        verdict = await _retry(rig, record, partial(_judge, task, rig, stop, record.patch))
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
    )


async def _retry(rig: Rig, record: _Record, attempt: Callable[[], Awaitable[T]]) -> T:
    retrying = AsyncRetrying(
        stop=stop_after_attempt(rig.rollout.infra_retries + 1),
        wait=wait_exponential(multiplier=rig.retry_seconds, max=60),
        retry=retry_if_exception_type((SandboxError, PolicyError)),
        before_sleep=record.count_retry,
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
    """Play on a fresh machine and take its diff."""
    record.turns, record.patch = [], ""
    async with rig.machines.lease(task.image) as sandbox:
        seat = Seat(sandbox, rig, slot, record.turns, time.monotonic() + rig.episode_seconds)
        try:
            stop = await play(policy, task, seat)
            record.patch = await rig.diff(sandbox, task.image)
        except ResourceExhausted as failure:
            stop, record.error = Stop.RESOURCE, str(failure)
            record.patch = await _salvage(sandbox, task, rig)
    return stop


async def _salvage(sandbox: Sandbox, task: Task, rig: Rig) -> str:
    """The diff of a machine that its agent has used up, where it can still be read. That it cannot is the agent's doing."""
    try:
        return await rig.diff(sandbox, task.image)
    except (ResourceExhausted, SandboxError):
        return ""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one attempt plays: its machine, and the record it writes its turns to (a later caller may start it with earlier turns)."""

    sandbox: Sandbox
    rig: Rig
    slot: Slot
    turns: list[Turn]
    deadline: float
    """By the monotonic clock."""


async def play(policy: Policy, task: Task, seat: Seat) -> Stop:
    """Turn after turn until something ends the episode."""
    prompt = _next_prompt(task, seat)
    while (stop := _limit(seat, prompt)) is None:
        try:
            async with asyncio.timeout(seat.deadline - time.monotonic()):
                completion, seconds = await _sample(policy, prompt, seat)
        except TimeoutError:
            return Stop.TIME
        except ContextFull:
            return Stop.CONTEXT_FULL
        seen = await look(seat.sandbox, seat.rig.rollout, min(seat.rig.command_seconds, _left(seat)), first=not seat.turns)
        turn = await _act(tuple(prompt), completion, seconds, seat)
        seat.turns.append(replace(turn, anchor=seen.anchor, passed=seen.passed))
        if turn.call is not None and turn.call.name == "submit":
            return Stop.SUBMITTED
        if time.monotonic() >= seat.deadline:
            return Stop.TIME
        prompt = _next_prompt(task, seat)
    return stop


def _next_prompt(task: Task, seat: Seat) -> list[int]:
    chat = seat.rig.chat
    if not seat.turns:
        return chat.start_prompt(task)
    last = seat.turns[-1]
    return chat.extend(last.prompt, last.completion, last.observation)


def _limit(seat: Seat, prompt: list[int]) -> Stop | None:
    """The limit that is reached before this prompt is sent, if any."""
    errors = seat.rig.rollout.format_errors
    if len(seat.turns) >= errors and all(turn.call is None for turn in seat.turns[-errors:]):
        return Stop.FORMAT
    if len(seat.turns) >= seat.rig.rollout.max_turns:
        return Stop.MAX_TURNS
    return Stop.CONTEXT_FULL if len(prompt) >= seat.rig.context else None


async def _sample(policy: Policy, prompt: list[int], seat: Seat) -> tuple[Completion, float]:
    started = time.monotonic()
    room = min(seat.rig.rollout.max_new_tokens, seat.rig.context - len(prompt))
    completion = await policy.sample(prompt, room, derive_seed(seat.slot, len(seat.turns)))
    return completion, time.monotonic() - started


async def _act(prompt: tuple[int, ...], completion: Completion, seconds_model: float, seat: Seat) -> Turn:
    """The action of a completion, carried out."""
    started = time.monotonic()
    rig = seat.rig
    call = rig.chat.parse(completion.text)
    if isinstance(call, FormatError):
        cut = "" if completion.stopped else " (The answer was cut at the token limit; be shorter.)"
        return Turn(prompt, completion, None, f"Format error: {call.message}{cut}", seconds_model)
    shown = Shown(rig.rollout.observation_chars, min(rig.command_seconds, _left(seat)))
    observation = await run_tool(seat.sandbox, call, shown)
    return Turn(prompt, completion, call, observation, seconds_model, time.monotonic() - started)


def _left(seat: Seat) -> float:
    """Seconds that a command may still take."""
    return max(seat.deadline - time.monotonic(), 1.0)


def derive_seed(slot: Slot, turn: int) -> int:
    """The sampling seed of one turn: the same in every attempt and after every resume, another one for every sibling."""
    digest = hashlib.blake2b(f"{slot.seed}/{slot.episode_id}/{turn}".encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1
