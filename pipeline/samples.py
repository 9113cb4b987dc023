"""The nouns of the learner, plain frozen arrays: what goes into a step and what is scored; imported through types.py.

    Sample                     one row for the learner: ids, mask of sampled tokens, engine log-probs, advantages
    Batch                      the samples of one optimiser step

Shapes: T tokens of a row, H of them with a teacher, K likeliest tokens.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Teacher:
    """What stages/hindsight.py would rather see at some tokens of a row: H tokens, and for each the K that the teacher holds likeliest.

    The loss adds weight x KL(policy || teacher) over K bins and one for all other tokens (loss.reverse_kl).
    """

    places_H: np.ndarray
    """int64: where in the row"""
    ids_HK: np.ndarray
    """int64: of the likeliest tokens ..."""
    logprobs_HK: np.ndarray
    """float32: ... and the teacher's log p of them, at the sampling temperature"""
    weights_H: np.ndarray
    """float32: of a token's divergence beside a token's gain"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row for the learner. All arrays have shape (T,), T = tokens of the row.

    Example: prompt [5, 6], sampled [7, 2], observation [8], sampled [9]:
        ids [5, 6, 7, 2, 8, 9], mask [0, 0, 1, 1, 0, 1], logprobs_T and advantages_T are 0 where mask is 0.
    """

    episode_id: str
    group_id: str
    ids_T: np.ndarray
    """int64"""
    mask_T: np.ndarray
    """bool: the policy sampled this token and it carries loss"""
    logprobs_T: np.ndarray
    """float32: engine log-probs"""
    advantages_T: np.ndarray
    """float32"""
    planning_T: np.ndarray | None = None
    """bool: part of a strategic gram (planning.py), and carries loss; None: not looked at. No part of the digest: it changes no update."""
    teacher: Teacher | None = None
    """No part of the digest: it follows from the weights."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one optimiser step, with what was left out and why."""

    samples: tuple[Sample, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    """batch/mixed_groups, batch/dropped_constant, batch/infra_episodes, reward/mean ..."""
    fates: dict[str, str] = field(default_factory=dict)
    """Episode id -> "trained", or why it carries no loss."""

    @property
    def tokens(self) -> int:
        """Tokens that carry loss, over all samples: the denominator of the token mean."""
        return int(sum(sample.mask_T.sum() for sample in self.samples))

    @property
    def digest(self) -> str:
        """The same for the same samples in the same order, to the bit."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.episode_id} {sample.group_id} {len(sample.ids_T)}\n".encode())
            for array in (sample.ids_T, sample.mask_T, sample.logprobs_T, sample.advantages_T):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The K likeliest tokens at each of a row's H tokens that carry loss, from the likeliest."""

    ids_HK: np.ndarray
    """int64"""
    logprobs_HK: np.ndarray
    """float32"""
