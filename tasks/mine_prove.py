"""A mined commit as a task, proved by runs of the official evaluation before and after its fix; knows no repository and no index."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sandbox import Limits, Pool, apply_patch

from .base import Outcome, Task
from .evaluation import LOG_BYTES, Evaluation, run_tests
from .grade import judge
from .lease import machine
from .swebench import read_log

LIMITS = Limits(memory_mb=1024, disk_mb=512, output_bytes=LOG_BYTES, episode_seconds=3600.0)
RUNS = 3
"""Of each side, all alike."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A task with its lists, and what its runs showed."""

    task: Task
    log: str
    """Of a run before the fix."""
    new: tuple[str, ...]
    """FAIL_TO_PASS that the parent commit does not have: written with the fix. The others existed."""
    unimportable: bool
    """Whether test files could not be loaded before the fix (they import what it brings)."""


async def prove(machines: Pool, draft: Task, untested: Task) -> Proof | str:
    """Fill the lists of a task from RUNS runs of each side, or say why it is none. `untested`: the same with the parent's tests."""
    after, before = await _evaluate(machines, draft, draft.gold_patch), await _evaluate(machines, draft, "")
    if why := _first_look(draft, before, after):
        return why
    afters, befores = [after], [before]
    for _ in range(RUNS - 1):
        afters.append(await _evaluate(machines, draft, draft.gold_patch))
        befores.append(await _evaluate(machines, draft, ""))
    failing, passing, unimportable = _lists(draft, befores, afters)
    if not failing:
        return "no test fails before and passes after in every run"
    task = replace(draft, fail_to_pass=failing, pass_to_pass=passing)
    if any(judge(task, run).outcome is not Outcome.RESOLVED for run in afters):
        return f"the official evaluation does not resolve with the fix: {judge(task, after).reason[:200]}"
    if any(judge(task, run).outcome is not Outcome.UNRESOLVED for run in befores):
        return "the official evaluation does not tell the fix from the parent"
    known = read_log(untested, (await _evaluate(machines, untested, "")).log).tests
    return Proof(task, before.log, tuple(test for test in failing if test not in known), unimportable)


async def _evaluate(machines: Pool, task: Task, patch: str) -> Evaluation:
    async with machine(machines, task.image, LIMITS) as sandbox:
        if patch and not await apply_patch(sandbox, patch):
            raise ValueError(f"{task.instance_id}: its gold patch does not apply to its own tree")
        return await run_tests(sandbox, task)


def _first_look(task: Task, before: Evaluation, after: Evaluation) -> str:
    """Why one run of each side is enough to leave a commit; "" where it is not."""
    if before.timed_out or after.timed_out:
        return f"its tests take more than {task.test_seconds:g} seconds"
    if before.broken or after.broken:
        return "its tests bring the machine down"
    new, old = read_log(task, after.log).tests, read_log(task, before.log).tests
    if not any(status == "PASSED" for status in new.values()):
        return f"no test passes with the fix: {_complaint(after.log)}"
    return "" if any(status == "PASSED" and old.get(test) != "PASSED" for test, status in new.items()) else "no test notices the fix"


def _complaint(log: str) -> str:
    """What pytest says first of what went wrong."""
    lines = [line for line in log.splitlines() if line.startswith(("E   ", "ERROR", "error:", "pytest: error"))]
    return (lines or log.strip().splitlines()[-1:] or ["nothing was printed"])[0].removeprefix("E   ").strip()[:160]


def _lists(task: Task, befores: Sequence[Evaluation], afters: Sequence[Evaluation]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """FAIL_TO_PASS, PASS_TO_PASS, and whether files could not be loaded before. The log and the witness agree, in every run.

    A test that a file would hold which cannot be loaded before the fix fails before.
    """
    old, new = [_agreed(task, run) for run in befores], [_agreed(task, run) for run in afters]
    passing = [test for test in new[0] if all(run.get(test) == "PASSED" for run in new)]
    unloaded = {name for name, status in read_log(task, befores[0].log).tests.items() if "::" not in name and status == "ERROR"}
    failing = [test for test in passing if all(_fails(run, test, unloaded) for run in old)]
    kept = [test for test in passing if all(run.get(test) == "PASSED" for run in old)]
    return tuple(sorted(failing)), tuple(sorted(kept)), bool(unloaded)


def _fails(run: dict[str, str], test: str, unloaded: set[str]) -> bool:
    return run.get(test) in ("FAILED", "ERROR") or (test not in run and test.split("::", 1)[0] in unloaded)


def _agreed(task: Task, run: Evaluation) -> dict[str, str]:
    """Statuses on which the official parser and the witness agree."""
    witness = run.witness.statuses
    return {test: status for test, status in read_log(task, run.log).tests.items() if witness.get(test) == status}
