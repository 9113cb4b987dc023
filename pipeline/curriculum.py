"""How often each task was solved in runs so far, and which tasks are worth another attempt; reads journals, runs nothing.

The pool of a second stage (Golubev et al., arXiv:2508.03501): tasks never solved and tasks solved in two thirds of the attempts or more
are left out, because a group of theirs seldom holds both outcomes. An attempt that the infrastructure failed counts as none.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks import Task

from .compare import read_scores
from .journal import Journal

EASY = 2 / 3
BINS = ("never", "up to 1/6", "up to 1/3", "up to 1/2", "below 2/3", "2/3 and more", "always")
Fate = Literal["never solved", "too easy", "kept"]


@dataclass(frozen=True, slots=True)
class Record:
    """One task's attempts that have a verdict, in the order in which they were made."""

    instance_id: str
    solved: tuple[bool, ...]

    @property
    def rate(self) -> float:
        """Share solved."""
        return sum(self.solved) / len(self.solved)

    @property
    def fate(self) -> Fate:
        """What the rule says."""
        if not any(self.solved):
            return "never solved"
        return "too easy" if self.rate >= EASY else "kept"

    @property
    def bin(self) -> str:
        """One of BINS."""
        if self.rate in (0.0, 1.0):
            return BINS[0] if self.rate == 0.0 else BINS[-1]
        if self.rate >= EASY:
            return BINS[5]
        return BINS[1] if self.rate <= 1 / 6 else BINS[2] if self.rate <= 1 / 3 else BINS[3] if self.rate <= 1 / 2 else BINS[4]

    def running(self) -> list[float]:
        """The success rate after each attempt."""
        return [sum(self.solved[:count]) / count for count in range(1, len(self.solved) + 1)]


def read_records(runs: Iterable[Path]) -> dict[str, Record]:
    """The attempts of all tasks in folders of eval, rollout or train, or in official run reports (FileNotFoundError: no run)."""
    solved: dict[str, list[bool]] = defaultdict(list)
    for run in runs:
        for name, rewards in _scores(run).items():
            solved[name] += [reward == 1.0 for reward in rewards if reward is not None]
    return {name: Record(name, tuple(found)) for name, found in sorted(solved.items()) if found}


def _scores(run: Path) -> Mapping[str, Sequence[float | None]]:
    """As compare.py reads them, but that a training run (its journal holds steps) is read in the order of its steps."""
    if not (run / "journal.sqlite").exists():
        return read_scores(run)
    rewards: dict[str, list[float | None]] = defaultdict(list)
    with Journal(run, readonly=True) as journal:
        for row in sorted(journal.rows(), key=lambda row: row.step):
            rewards[row.instance_id].append(row.reward)
    return rewards


def leave_out(tasks: Sequence[Task], records: Mapping[str, Record]) -> tuple[tuple[Task, ...], Counter[str]]:
    """The pool, and how many tasks are left out for which reason; a task without an attempt stays."""
    fates = [records[task.instance_id].fate if task.instance_id in records else "kept" for task in tasks]
    kept = tuple(task for task, fate in zip(tasks, fates, strict=True) if fate == "kept")
    return kept, Counter(fate for fate in fates if fate != "kept")


def histogram(records: Iterable[Record]) -> dict[str, int]:
    """Tasks by how hard they were, the hardest first; every bin is there."""
    found = Counter(record.bin for record in records)
    return {name: found[name] for name in BINS}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One JSON line a task: what was attempted, the running success rate, and what the rule says."""
    lines = [
        {"instance_id": r.instance_id, "attempts": len(r.solved), "solved": sum(r.solved), "rate": round(r.rate, 4), "pool": r.fate}
        | {"running": [round(rate, 4) for rate in r.running()]}
        for r in records
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".partial")
    draft.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    draft.replace(path)
