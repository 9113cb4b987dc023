"""Is a task sound? The gold patch resolves it, the untouched tree does not, and K runs of each agree; knows no model."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sandbox import Backend, Pool

from . import lineage
from .base import Outcome, Suite, Task
from .grade import grade, grade_untouched

Progress = Callable[[int, int, str], None]
"""(tasks done, tasks in all, one line on the last)"""


@dataclass(frozen=True, slots=True)
class Validation:
    """How often which verdict came."""

    instance_id: str
    gold: tuple[Outcome, ...]
    noop: tuple[Outcome, ...]
    seconds: float

    @property
    def sound(self) -> bool:
        """Every gold run resolved, every run of the untouched tree unresolved."""
        return set(self.gold) == {Outcome.RESOLVED} and set(self.noop) == {Outcome.UNRESOLVED}

    @property
    def failed(self) -> bool:
        """The machine failed in a run, so nothing is said about the task: validate it again."""
        return Outcome.INFRA in (*self.gold, *self.noop)


async def validate_suite(
    suite: Suite, machines: Backend | Pool, repeats: int = 1, progress: Progress | None = None, jobs: int = 2
) -> tuple[Validation, ...]:
    """Validate every task, `jobs` at a time; one line each in the suite's lineage.jsonl. The order is the suite's."""
    gate = asyncio.Semaphore(jobs)
    done: list[str] = []

    async def one(task: Task) -> Validation:
        async with gate:
            found = await validate_task(task, machines, repeats)
        _note(suite, found)
        done.append(task.instance_id)
        if progress:
            progress(len(done), len(suite.tasks), f"{task.instance_id}: {'sound' if found.sound else 'NOT SOUND'}")
        return found

    return tuple(await asyncio.gather(*(one(task) for task in suite.tasks)))


async def validate_task(task: Task, machines: Backend | Pool, repeats: int = 1) -> Validation:
    """Gold and untouched, `repeats` times each."""
    gold = [await grade(machines, task, task.gold_patch) for _ in range(repeats)]
    noop = [await grade_untouched(machines, task) for _ in range(repeats)]
    seconds = sum(verdict.seconds for verdict in (*gold, *noop))
    return Validation(task.instance_id, tuple(v.outcome for v in gold), tuple(v.outcome for v in noop), seconds)


def _note(suite: Suite, found: Validation) -> None:
    if suite.path.is_dir():
        outcomes = {"gold": [outcome.value for outcome in found.gold], "noop": [outcome.value for outcome in found.noop]}
        verdict = {"sound": found.sound, "infra": found.failed, "seconds": round(found.seconds, 2)}
        lineage.append(suite.path, {"step": "validate", "instance_id": found.instance_id, **outcomes, **verdict})
