"""Two evaluations of the same tasks -> what differs; reads journals and report.json, runs nothing."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from .journal import Journal
from .statistics import Difference, paired_difference

Scores = dict[str, list[float | None]]
"""Instance id -> 1.0, 0.0 or None (the infrastructure failed) of each attempt."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A, over the tasks that both have."""

    tasks: int
    rate_a: float
    rate_b: float
    difference: Difference
    won: tuple[str, ...]
    """Tasks that B solves more often than A ..."""
    lost: tuple[str, ...]
    """... and less often."""
    missing: tuple[int, int]
    """Tasks that only A has, that only B has: left out."""
    infra: tuple[int, int]
    """Tasks of A, of B, of which an attempt has no verdict; it counts as not solved, as in the official report."""


def compare_runs(a: Path, b: Path, seed: int = 0) -> Comparison:
    """Compare two folders of eval, grade or rollout, or two official report.json files (ValueError where they share no task)."""
    first, second = read_scores(a), read_scores(b)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError(f"{a} and {b} have no task in common: they are runs of different suites")
    rates_a, rates_b = ([_share(scores[name]) for name in shared] for scores in (first, second))
    pairs = list(zip(shared, rates_a, rates_b, strict=True))
    return Comparison(
        tasks=len(shared),
        rate_a=sum(rates_a) / len(shared),
        rate_b=sum(rates_b) / len(shared),
        difference=paired_difference(rates_a, rates_b, seed),
        won=tuple(name for name, left, right in pairs if right > left),
        lost=tuple(name for name, left, right in pairs if right < left),
        missing=(len(first) - len(shared), len(second) - len(shared)),
        infra=(_unfinished(first, shared), _unfinished(second, shared)),
    )


def read_scores(path: Path) -> Scores:
    """What each task of a run was worth (FileNotFoundError where there is no run)."""
    if path.is_file():
        return _from_report(path)
    if not (path / "journal.sqlite").exists():
        if (path / "report.json").is_file():
            return _from_report(path / "report.json")
        raise FileNotFoundError(f"{path}: no run (neither journal.sqlite nor report.json is there)")
    scores: Scores = defaultdict(list)
    with Journal(path, readonly=True) as journal:
        newest = {row.episode_id.partition("~")[0]: row for row in journal.rows()}
    for row in newest.values():
        scores[row.instance_id].append(row.reward)
    return dict(scores)


def _from_report(path: Path) -> Scores:
    """The run report of the official harness, or ours: submitted instances, of which some are resolved."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        resolved, infra = set(report["resolved_ids"]), set(report.get("infra_failure_ids", []))
        return {name: [None if name in infra else float(name in resolved)] for name in report["submitted_ids"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a run report ({error!r})") from None


def _share(attempts: list[float | None]) -> float:
    return sum(reward == 1.0 for reward in attempts) / len(attempts)


def _unfinished(scores: Scores, shared: list[str]) -> int:
    return sum(None in scores[name] for name in shared)
