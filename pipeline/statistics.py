"""What a score means: intervals, pass@k, and whether two runs differ; pure functions of counts and arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
"""Of a bootstrap."""
LEVEL = 0.95


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927): where the true rate lies; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at(k: int, attempts: int, solved: int) -> float:
    """The chance that one of k attempts solves a task, unbiased, from `attempts` of which `solved` did: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374, equation 1. ValueError where k attempts were not made.
    """
    if not 1 <= k <= attempts or not 0 <= solved <= attempts:
        raise ValueError(f"pass@{k} needs at least {k} attempts, and {solved} of {attempts} solved is what there is")
    return 1 - math.comb(attempts - solved, k) / math.comb(attempts, k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of runs and its standard error, s / sqrt(n) with s over n - 1 (None for one run)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


@dataclass(frozen=True, slots=True)
class Difference:
    """B - A over the tasks that both have."""

    mean: float
    low: float
    """Percentile interval of the paired bootstrap, 95 %."""
    high: float
    only_a: int
    """Tasks that A solves and B does not, or less often ..."""
    only_b: int
    """... and the other way round."""
    p: float
    """McNemar's exact test on those two: the chance of so uneven a split where both are alike."""


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Difference:
    """Two runs on the same tasks, in the same order: share solved of each task (0 or 1 where there was one attempt).

    The bootstrap draws tasks, because tasks are what another suite would have others of (Efron and Tibshirani 1993, chapter 13).
    """
    gains = np.asarray(b, float) - np.asarray(a, float)
    if gains.ndim != 1 or not gains.size:
        raise ValueError("two runs of at least one task in common are needed")
    rng = np.random.default_rng(seed)
    drawn = np.array([gains[rng.integers(0, gains.size, gains.size)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    lost, won = int((gains < 0).sum()), int((gains > 0).sum())
    return Difference(float(gains.mean()), float(low), float(high), lost, won, mcnemar(lost, won))


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided McNemar test (McNemar 1947): of lost + won tasks that changed, each way is as likely under no difference."""
    changed = lost + won
    tail: float = sum(math.comb(changed, count) for count in range(min(lost, won) + 1)) / 2**changed
    return min(1.0, 2 * tail)
