"""Episodes drawn by the size of their advantage: P(e) = |A_e| / sum |A| (MS-GRPO, arXiv:2508.10839); knows samples, no model.

The probability is ours: the paper's abstract names the idea, not the formula.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .config import CreditConfig
from .types import Sample


def draw_counts(advantages_E: np.ndarray, draws: int, seed: Sequence[int]) -> np.ndarray:
    """How often each of E episodes is drawn, shape (E,), int64, sum = draws; equal seeds give equal counts. Zeros where all |A| are 0."""
    size_E = np.abs(advantages_E)
    if not size_E.sum():
        return np.zeros(len(size_E), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(draws, size_E / size_E.sum())


def draw_factors(advantages_E: np.ndarray, tokens_E: np.ndarray, counts_E: np.ndarray, *, unbiased: bool) -> np.ndarray:
    """What each episode's advantages are multiplied with, shape (E,), 0 where it was not drawn.

    The learner divides by the tokens of what it gets, D. unbiased: count / (n P) * D / (tokens of the whole batch), so that the
    expected token-mean gradient is the whole batch's, exactly. Otherwise count * D / (tokens of all draws): the token mean of the draws.
    """
    got = float(tokens_E[counts_E > 0].sum())
    if not got:
        return np.zeros(len(tokens_E))
    if not unbiased:
        return counts_E * got / float((counts_E * tokens_E).sum())
    size_E = np.abs(advantages_E)
    share_E = np.where(size_E > 0, size_E / size_E.sum(), 1.0)
    factors_E: np.ndarray = counts_E / (counts_E.sum() * share_E) * got / float(tokens_E.sum())
    return factors_E


def draw_samples(samples: Sequence[Sample], config: CreditConfig, step: int) -> tuple[Sample, ...]:
    """The samples of the drawn episodes, each once, with advantages multiplied; for schemes with one advantage per episode.

    The same step and seed draw the same episodes, so that a resumed run repeats its batch.
    """
    names = list(dict.fromkeys(sample.episode_id for sample in samples))
    index = {name: number for number, name in enumerate(names)}
    advantages_E, tokens_E = np.zeros(len(names)), np.zeros(len(names))
    for sample in samples:
        advantages_E[index[sample.episode_id]] = float(sample.advantages_T[sample.mask_T][0])
        tokens_E[index[sample.episode_id]] += float(sample.mask_T.sum())
    counts_E = draw_counts(advantages_E, config.draws, (config.draw_seed, step))
    factors_E = draw_factors(advantages_E, tokens_E, counts_E, unbiased=config.draw_weights == "unbiased")
    return tuple(
        replace(sample, advantages_T=(sample.advantages_T * factors_E[index[sample.episode_id]]).astype(np.float32))
        for sample in samples
        if factors_E[index[sample.episode_id]]
    )
