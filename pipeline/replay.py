"""Recorded episodes once more: every action in a fresh machine, the diff and the verdict; or another policy from turn K on.

An episode replays exactly where each observation, exit code and tree hash, the diff and the verdict are those of the record
(pipeline/redo.py). An episode that the infrastructure ended is compared as far as its record goes.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from sandbox import ResourceExhausted, SandboxError
from tasks import Outcome, Task, Verdict, load_suite

from .actor import open_actor, open_chat, prepare_machines, token_limits
from .config import Config
from .evaluate import AGAIN, count_attempts
from .gather import gather
from .journal import Journal
from .manifest import find_changes
from .prefix import cut_before, retell
from .progress import progress
from .prompt import ByteTemplate, Chat
from .redo import Divergence, redo
from .rollout import Rig, Slot, run_episode
from .types import Episode, Stop
from .world import open_rig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one episode."""

    episode_id: str
    turns: int
    divergence: Divergence | None
    """None: it replays exactly."""
    error: str = ""
    """The infrastructure failed, so that nothing can be said."""
    seconds: float = 0.0


async def replay_run(config: Config, run: Path, names: Sequence[str]) -> list[Replayed]:
    """Replay these episodes of a run, as many at once as there are machines; ValueError for one that it does not hold."""
    with Journal(run, readonly=True) as journal:
        known = {row.episode_id: row.instance_id for row in journal.rows()}
        for name in names:
            if name not in known:
                raise ValueError(f"{run}: no episode {name}; `greengrad show {run}` lists them")
        tasks = await find_tasks(config, run, sorted({known[name] for name in names}))
        room = asyncio.Semaphore(config.sandbox.concurrency)
        async with open_rig(config.model_copy(update={"user": None}), token_limits(config)[0], Chat(ByteTemplate()), 1) as rig:
            with progress("replay", len(names)) as bar:

                async def one(name: str) -> Replayed:
                    async with room:
                        found = await replay(journal.episode(name), tasks[known[name]], rig)
                    bar.advance(f"{name} {found.error or found.divergence or 'exactly'}")
                    return found

                return await gather([one(name) for name in names])


async def find_tasks(config: Config, run: Path, names: Sequence[str]) -> dict[str, Task]:
    """Tasks of the run's suite by instance id, sealed, with a warning where their images are other ones than the run's."""
    suite = {task.instance_id: task for task in load_suite(config.tasks.suite).tasks}
    if missing := [name for name in names if name not in suite]:
        raise ValueError(f"{config.tasks.suite}: has no task {missing[0]}; --tasks.suite names the suite of this run")
    ready = await prepare_machines(config.sandbox, config.tasks.suite, [suite[name] for name in names])
    for line in find_changes(run, config.tasks.suite, ready.images):
        log.warning("what is replayed is not what was recorded: %s", line)
    return ready.tasks


async def replay(episode: Episode, task: Task, rig: Rig) -> Replayed:
    """One episode; what the infrastructure fails is tried again like an episode."""
    started = time.monotonic()
    if task.unusable:
        return Replayed(episode.episode_id, 0, None, task.unusable)
    retrying = AsyncRetrying(
        stop=stop_after_attempt(rig.rollout.infra_retries + 1),
        wait=wait_exponential(multiplier=rig.retry_seconds, max=60),
        retry=retry_if_exception_type(SandboxError),
        reraise=True,
    )
    error = ""
    divergence: Divergence | None = None
    try:
        divergence = await retrying(find_divergence, episode, task, rig)
    except SandboxError as failure:
        error = str(failure)
    return Replayed(episode.episode_id, len(episode.turns), divergence, error, time.monotonic() - started)


async def find_divergence(episode: Episode, task: Task, rig: Rig) -> Divergence | None:
    """The first difference between the record and a fresh machine; SandboxError where the infrastructure fails."""
    if episode.patch and not episode.turns and episode.stop is Stop.SUBMITTED:  # a prediction: there is only its grade
        return await _compare_verdicts(episode.verdict, await rig.grade(task, episode.patch))
    async with rig.machines.lease(task.image) as sandbox:
        try:
            found = await redo(sandbox, episode.played, rig.rollout, rig.command_seconds)
            if found is not None or episode.stop is Stop.INFRA:
                return found
            patch = await rig.diff(sandbox, task.image)
        except ResourceExhausted as failure:
            if episode.stop is not Stop.RESOURCE:
                return Divergence(0, "patch", episode.patch, f"the machine was used up: {failure}")
            return None  # what of the diff can still be read of such a machine is chance
    if patch != episode.patch:
        return Divergence(0, "patch", *_from_difference(episode.patch, patch))
    return await _compare_verdicts(episode.verdict, await rig.grade(task, patch))


async def _compare_verdicts(recorded: Verdict | None, found: Verdict) -> Divergence | None:
    if found.outcome is Outcome.INFRA:
        raise SandboxError(f"grading: {found.reason}")
    if recorded is None or recorded.outcome is Outcome.INFRA:
        return None
    if (recorded.outcome, recorded.tests) == (found.outcome, found.tests):
        return None
    names = sorted({*recorded.tests, *found.tests})
    changed = [name for name in names if recorded.tests.get(name) != found.tests.get(name)]
    tests = {name: (recorded.tests.get(name), found.tests.get(name)) for name in changed[:3]}
    return Divergence(0, "verdict", f"{recorded.outcome.value} {tests}", f"{found.outcome.value} {found.reason}")


def _from_difference(a: str, b: str) -> tuple[str, str]:
    start = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[max(start - 40, 0) :], b[max(start - 40, 0) :]


async def continue_from(config: Config, run: Path, name: str, turn: int, out: Path) -> Episode:
    """Another policy (rollout.policy) plays on from `turn` (from 1) of a recorded episode; the new one is recorded in `out`."""
    with Journal(run, readonly=True) as journal:
        recorded = journal.episode(name)
    tasks = await find_tasks(config, run, [recorded.instance_id])
    task, chat = tasks[recorded.instance_id], open_chat(config)
    prefix = retell(chat, task, cut_before(recorded, turn))
    rollout, context = token_limits(config)
    with Journal(out) as record:
        new = f"{name}@{turn}"
        number = count_attempts(record)[new]
        slot = Slot(f"{new}{AGAIN}{number}" if number else new, recorded.group_id, config.train.seed, prefix=prefix)
        async with (
            open_rig(config, rollout, chat, context) as rig,
            open_actor(config, chat, out / "logs" / "vllm.log", after=len(prefix)) as actor,
        ):
            episode = await run_episode(actor.policy_for(task), task, replace(rig, diary=record), slot)
        record.record_episode(episode, step=0)
    return episode
