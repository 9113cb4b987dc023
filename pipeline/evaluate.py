"""Episodes without learning: each piece of work attempted once, recorded, resumable; knows neither models nor sandboxes.

The same command on the same folder goes on: what has a verdict is not attempted again, what the infrastructure failed is, under
a new id (NAME~1). A score counts what is still without a verdict as not resolved, as the official harness does.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from tasks import Outcome, Task

from .breaker import Breaker
from .gather import gather
from .journal import Journal
from .progress import progress
from .results import Results, save_results, summarise
from .rollout import Rig, Slot, run_episode
from .types import Episode, Policy

AGAIN = "~"
"""Between the name of a piece of work and the number of an attempt that follows a failed one."""

Attempt = Callable[[Task, str], Awaitable[Episode]]
"""A task and the id of its new episode -> the episode, graded."""


@dataclass(frozen=True, slots=True)
class Actor:
    """What is evaluated."""

    name: str
    """As the report and the predictions call it."""
    policy_for: Callable[[Task], Policy]
    """The same policy for every task, or one made for it (a script)."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """One episode that is wanted."""

    name: str
    task: Task


async def evaluate(actor: Actor, tasks: Sequence[Task], rig: Rig, journal: Journal, title: str = "evaluate") -> Results:
    """One episode of each task, and the summary. The journal's folder holds everything."""
    return await evaluate_work(actor, [Work(task.instance_id, task) for task in tasks], rig, journal, title)


async def evaluate_work(actor: Actor, work: Sequence[Work], rig: Rig, journal: Journal, title: str) -> Results:
    """The wanted episodes, acted by a policy, and their summary."""
    rig = replace(rig, diary=journal)

    async def act(task: Task, name: str) -> Episode:
        return await run_episode(actor.policy_for(task), task, rig, Slot(name, task.instance_id, actor.seed))

    seconds = await attempt_all(journal, work, act, title, Breaker(rig.rollout.infra_stop))
    results = summarise(actor.name, newest_episodes(journal, work), seconds)
    save_results(journal.run, results)
    return results


async def attempt_all(journal: Journal, work: Sequence[Work], attempt: Attempt, title: str, breaker: Breaker) -> float:
    """Attempt what has no verdict yet; returns the seconds that this and earlier runs took."""
    started = time.monotonic()
    before = sum(phase.seconds for phase in journal.phases() if phase.name == title)
    done = finished(journal)
    open_work = [one for one in work if one.name not in done]
    attempts = count_attempts(journal)
    try:
        with progress(title, len(open_work)) as bar:

            def record(one: Work, episode: Episode) -> None:
                journal.record_episode(episode, step=0)
                bar.advance(f"{one.name} {episode.verdict.outcome.value if episode.verdict else episode.stop.value}")
                if not one.task.unusable:  # of the task, and told before it began: no sign of failing infrastructure
                    breaker.note(episode)

            await gather([_attempt(one, attempts[one.name], attempt, record) for one in open_work])
    finally:
        seconds = before + time.monotonic() - started
        journal.mark_phase(title, seconds)
    return seconds


async def _attempt(one: Work, before: int, attempt: Attempt, record: Callable[[Work, Episode], None]) -> None:
    record(one, await attempt(one.task, f"{one.name}{AGAIN}{before}" if before else one.name))


def finished(journal: Journal) -> set[str]:
    """Names of the work that has a verdict."""
    return {_name(row.episode_id) for row in journal.rows() if row.outcome not in (None, Outcome.INFRA)}


def count_attempts(journal: Journal) -> Counter[str]:
    """Name -> episodes recorded, those that the infrastructure failed included."""
    return Counter(_name(row.episode_id) for row in journal.rows())


def newest_episodes(journal: Journal, work: Sequence[Work]) -> list[Episode]:
    """The last attempt of each piece of work, in the order of the work."""
    newest = {_name(row.episode_id): row.episode_id for row in journal.rows()}
    return [journal.episode(newest[one.name]) for one in work if one.name in newest]


def _name(episode_id: str) -> str:
    return episode_id.partition(AGAIN)[0]
