"""How well a policy does on tasks: one episode an instance, graded, recorded, resumable; knows neither models nor sandboxes.

The same command on the same folder goes on: an instance with a verdict is not attempted again, one that the infrastructure
failed is. The score counts what is still without a verdict as not resolved, as the official harness does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks import Outcome, Task

from .collect import gather
from .journal import Journal
from .progress import Progress, progress
from .results import Results, save_results, summarise
from .rollout import Rig, Slot, run_episode
from .types import Episode, Policy

PHASE = "evaluate"


@dataclass(frozen=True, slots=True)
class Actor:
    """What is evaluated."""

    name: str
    """As the report and the predictions call it."""
    policy_for: Callable[[Task], Policy]
    """The same policy for every task, or one made for it (a script)."""
    seed: int = 0


async def evaluate(actor: Actor, tasks: Sequence[Task], rig: Rig, journal: Journal, title: str = "evaluate") -> Results:
    """Attempt what has no verdict yet, and write the summary. The journal's folder holds everything."""
    started = time.monotonic()
    before = sum(phase.seconds for phase in journal.phases() if phase.name == PHASE)
    attempts = count_attempts(journal)
    done = finished(journal)
    open_tasks = [task for task in tasks if task.instance_id not in done]
    try:
        with progress(title, len(open_tasks)) as bar:
            await gather([_attempt(actor, task, rig, _Record(journal, bar, attempts.get(task.instance_id, 0))) for task in open_tasks])
    finally:
        seconds = before + time.monotonic() - started
        journal.mark_phase(PHASE, seconds)
    results = summarise(actor.name, last_episodes(journal, tasks), seconds)
    save_results(journal.run, results)
    return results


@dataclass(frozen=True, slots=True)
class _Record:
    """Where a finished episode is told."""

    journal: Journal
    bar: Progress
    attempt: int


async def _attempt(actor: Actor, task: Task, rig: Rig, record: _Record) -> None:
    slot = Slot(f"{task.instance_id}.{record.attempt:02d}", task.instance_id, actor.seed)
    episode = await run_episode(actor.policy_for(task), task, rig, slot)
    record.journal.record_episode(episode, step=0)
    record.bar.advance(f"{task.instance_id} {episode.verdict.outcome.value if episode.verdict else episode.stop.value}")


def finished(journal: Journal) -> set[str]:
    """Instances with a verdict."""
    return {row.instance_id for row in journal.rows() if row.outcome not in (None, Outcome.INFRA)}


def count_attempts(journal: Journal) -> dict[str, int]:
    """Instance -> episodes recorded, those that the infrastructure failed included."""
    counts: dict[str, int] = {}
    for row in journal.rows():
        counts[row.instance_id] = counts.get(row.instance_id, 0) + 1
    return counts


def last_episodes(journal: Journal, tasks: Sequence[Task]) -> list[Episode]:
    """The newest episode of each task, in the order of the tasks."""
    newest = {row.instance_id: row.episode_id for row in journal.rows()}
    return [journal.episode(newest[task.instance_id]) for task in tasks if task.instance_id in newest]
