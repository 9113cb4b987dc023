"""Is a task sound? Gold resolves, untouched and reversed do not, K runs agree, in either order; knows no model.

Interrupted, it goes on: a task whose files and settings are those of a line in lineage.jsonl is not run again. A machine that fails says
nothing about a task: it is tried again, and reported without a verdict where that fails too.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sandbox import Backend, Limits, ResourceExhausted, SandboxError, apply_patch

from . import lineage
from .base import Outcome, Suite, Task, Verdict
from .evaluation import is_witnessed, run_tests
from .grade import grade, grade_untouched, judge
from .lease import machine
from .reverse import reverse_patch
from .soundness import fails_by_missing_names, wants_network
from .swebench import dump_json, instance_row

Progress = Callable[[int, int, str], None]
"""(tasks done, tasks in all, one line on the last)"""
ROUNDS = 2
"""Of a task whose machines fail."""
_PEAK = "cat /sys/fs/cgroup/memory.peak /sys/fs/cgroup/memory/memory.max_usage_in_bytes 2>/dev/null"


@dataclass(frozen=True, slots=True)
class Validation:
    """How a task's runs ended."""

    instance_id: str
    gold: tuple[Outcome, ...]
    noop: tuple[Outcome, ...]
    seconds: float
    """Of all runs."""
    reversed: Outcome | None = None
    """The gold patch backwards; None where it cannot be reversed (binary)."""
    empty: Outcome | None = None
    backwards: Outcome | None = None
    """Gold with the tests in the opposite order; None where their runner is not ours to tell."""
    memory_mb: int | None = None
    """Most that a machine used for one run, where its control group tells (Docker)."""
    network: bool = False
    """Whether a gold run that failed tells of a network that is not there."""
    missing_names: bool = False
    """Whether its tests fail only by names that are not there yet: sound, and left out by some (soundness.py)."""

    @property
    def why_not(self) -> str:
        """Why it is not sound, in one line; "" where it is."""
        if self.failed:
            return "the machine failed"
        if set(self.gold) != {Outcome.RESOLVED}:
            what = "is flaky" if Outcome.RESOLVED in self.gold else "does not resolve"
            return f"the gold patch {what}: {_told(self.gold)}" + (" (its tests want a network)" if self.network else "")
        if set(self.noop) != {Outcome.UNRESOLVED}:
            return f"the untouched tree: {_told(self.noop)}"
        if self.reversed is Outcome.RESOLVED:
            return "the gold patch backwards resolves it"
        if self.empty not in (None, Outcome.NO_PATCH):
            return f"an empty patch: {self.empty}"
        if self.backwards not in (None, Outcome.RESOLVED):
            return f"its tests depend on their order: {self.backwards} in the opposite one"
        return ""

    @property
    def sound(self) -> bool:
        """Whether it may be trained and evaluated on."""
        return not self.why_not

    @property
    def failed(self) -> bool:
        """The machine failed in a run, so nothing is said about the task: validate it again."""
        return Outcome.INFRA in (*self.gold, *self.noop, self.backwards)


@dataclass(frozen=True, slots=True)
class _Job:
    """What all tasks of one validation share."""

    suite: Suite
    backend: Backend
    repeats: int
    known: dict[str, Validation]
    """Fingerprint -> what an earlier run found."""


async def validate_suite(
    suite: Suite, backend: Backend, repeats: int = 1, progress: Progress | None = None, jobs: int = 2
) -> tuple[Validation, ...]:
    """Validate every task, `jobs` at a time; one line each in the suite's lineage.jsonl. The order is the suite's."""
    gate = asyncio.Semaphore(jobs)
    done: list[str] = []
    job = _Job(suite, backend, repeats, _known(suite))

    async def one(task: Task) -> Validation:
        async with gate:
            found = await _validate(job, task)
        done.append(task.instance_id)
        if progress:
            progress(len(done), len(suite.tasks), f"{task.instance_id}: {found.why_not or 'sound'}")
        return found

    return tuple(await asyncio.gather(*(one(task) for task in suite.tasks)))


async def _validate(job: _Job, task: Task) -> Validation:
    """What is known of a task, or what its runs show; a machine that fails gets another round."""
    try:
        identity = await job.backend.prepare(task.image.name) if not task.unusable else ""
    except SandboxError:
        identity = ""  # the runs will say what is wrong with it
    mark = fingerprint(task, identity, job.repeats)
    if mark in job.known:
        return job.known[mark]
    for _ in range(ROUNDS):
        found = await validate_task(task, job.backend, job.repeats)
        _note(job.suite, found, identity, mark)
        if not found.failed or task.unusable:
            break
    return found


async def validate_task(task: Task, backend: Backend, repeats: int = 1) -> Validation:
    """Gold and untouched, `repeats` times each; gold backwards and an empty patch; gold with its tests in the opposite order."""
    gold = [await grade(backend, task, task.gold_patch) for _ in range(repeats)]
    noop = [await grade_untouched(backend, task) for _ in range(repeats)]
    other, empty = await _reversed(backend, task), await grade(backend, task, "")
    backwards, memory = await _backwards(backend, task)
    runs = [*gold, *noop, *(verdict for verdict in (other, backwards) if verdict)]
    return Validation(
        task.instance_id,
        tuple(v.outcome for v in gold),
        tuple(v.outcome for v in noop),
        sum(verdict.seconds for verdict in runs),
        other.outcome if other else None,
        empty.outcome,
        backwards.outcome if backwards else None,
        memory,
        wants_network([v.log for v in gold if v.outcome is not Outcome.RESOLVED]),
        fails_by_missing_names(task, noop[0]),
    )


def fingerprint(task: Task, identity: str, repeats: int) -> str:
    """What a validation holds for: everything that the task's grading reads, and the content of its image and tree."""
    digest = hashlib.sha256(dump_json(instance_row(task)).encode("utf-8", "surrogatepass"))
    digest.update(repr((task.rule, task.expected, task.requirements, task.test_seconds, identity, repeats, task.unusable)).encode())
    if task.image.tree is not None:
        digest.update(hashlib.sha256(task.image.tree.read_bytes()).digest())
    return digest.hexdigest()[:32]


async def _reversed(backend: Backend, task: Task) -> Verdict | None:
    try:
        return await grade(backend, task, reverse_patch(task.gold_patch))
    except ValueError:
        return None


async def _backwards(backend: Backend, task: Task) -> tuple[Verdict | None, int | None]:
    """The gold patch with the tests in the opposite order, and the memory that this took."""
    if not is_witnessed(task) or task.unusable:
        return None, None
    try:
        async with machine(backend, task.image, Limits(episode_seconds=task.test_seconds + 300)) as sandbox:
            if not await apply_patch(sandbox, task.gold_patch):
                return replace(judge(task, await run_tests(sandbox, task)), outcome=Outcome.PATCH_INVALID), None
            verdict = judge(task, await run_tests(sandbox, task, backwards=True))
            peaks = [int(word) for word in (await sandbox.run(_PEAK, cwd="/")).text.split() if word.isdigit()]
            return verdict, max(peaks) >> 20 if peaks else None
    except SandboxError as error:
        return Verdict(task.instance_id, Outcome.INFRA, str(error)), None
    except ResourceExhausted as error:
        return Verdict(task.instance_id, Outcome.UNRESOLVED, str(error)), None


def _told(outcomes: tuple[Outcome, ...]) -> str:
    return ", ".join(dict.fromkeys(outcome.value for outcome in outcomes))


def _note(suite: Suite, found: Validation, identity: str, mark: str) -> None:
    if suite.path.is_dir():
        lineage.append(suite.path, _entry(found) | {"image": identity, "fingerprint": mark})


def _entry(found: Validation) -> dict[str, Any]:
    """One line of lineage."""
    single = {name: getattr(found, name) for name in ("reversed", "empty", "backwards")}
    return {
        "step": "validate",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "instance_id": found.instance_id,
        "gold": [outcome.value for outcome in found.gold],
        "noop": [outcome.value for outcome in found.noop],
        **{name: outcome.value if outcome else None for name, outcome in single.items()},
        "sound": found.sound,
        "why_not": found.why_not,
        "infra": found.failed,
        "seconds": found.seconds,
        "memory_mb": found.memory_mb,
        "network": found.network,
        "missing_names": found.missing_names,
    }


def _known(suite: Suite) -> dict[str, Validation]:
    """What earlier validations of this suite found; failures of machines are not known."""
    entries = lineage.entries(suite.path) if suite.path.is_dir() else iter(())
    return {entry["fingerprint"]: _read(entry) for entry in entries if entry.get("fingerprint") and not entry["infra"]}


def _read(entry: dict[str, Any]) -> Validation:
    single: dict[str, Any] = {name: Outcome(entry[name]) if entry[name] else None for name in ("reversed", "empty", "backwards")}
    plain = {name: entry[name] for name in ("instance_id", "seconds", "memory_mb", "network", "missing_names")}
    return Validation(**plain, **single, gold=tuple(map(Outcome, entry["gold"])), noop=tuple(map(Outcome, entry["noop"])))
