"""Samples -> micro-batches for the ranks, in which every distinct token stands once (tree.py); numpy only, knows no model.

Shapes: N tokens of a micro-batch, M scored tokens, T tokens of a sample, S samples, H tokens with a teacher, K bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .batch import weigh_samples
from .tree import Run, grow_tree, plan_packs
from .types import Sample, Teacher


@dataclass(frozen=True, slots=True)
class FixedLogprobs:
    """Log-probs that stay as they are during an iteration, shape (T,) for each sample; None where they are not needed."""

    old: Sequence[np.ndarray] | None = None
    """log pi_old"""
    reference: Sequence[np.ndarray] | None = None
    """log p under the reference model"""

    def of(self, rows: Sequence[int]) -> "FixedLogprobs":
        """Those of some samples."""
        return FixedLogprobs(*(None if known is None else [known[row] for row in rows] for known in (self.old, self.reference)))


NOTHING_FIXED = FixedLogprobs()


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass: its tokens, and which of them are scored. Samples are whole: loss.py sums over a sample's tokens."""

    ids_N: np.ndarray
    positions_N: np.ndarray
    runs: tuple[Run, ...]
    rows: tuple[int, ...]
    """Index of each sample among all; -1 = a copy of weight zero that only keeps the ranks in step."""
    sequences_M: np.ndarray
    """Which of `rows` a scored token belongs to."""
    tokens_M: np.ndarray
    """Its place in that sample, never 0, which nothing predicts."""
    sources_M: np.ndarray
    """Place among N of the token before it, whose hidden state predicts it."""
    targets_M: np.ndarray
    engine_M: np.ndarray
    old_M: np.ndarray | None
    """log pi_old; None = the current weights (the first minibatch is on-policy)."""
    reference_M: np.ndarray | None
    advantages_M: np.ndarray
    weights_M: np.ndarray
    planning_M: np.ndarray | None = None
    """bool; None = no sample of it was looked at."""
    teacher: Teacher | None = None
    """Its places are among M here, and its weights are those in the loss; None = no sample has one."""


@dataclass(frozen=True, slots=True)
class Room:
    """How samples are laid out."""

    tokens: int
    """Distinct tokens of a micro-batch, unless one sample alone has more."""
    ranks: int = 1
    share: bool = True
    """Whether what samples begin with in common stands once."""


def pack_samples(
    samples: Sequence[Sample], room: Room, weights_S: np.ndarray | None = None, fixed: FixedLogprobs = NOTHING_FIXED
) -> list[list[MicroBatch]]:
    """Per rank a list of micro-batches, the same number on each rank; nothing is padded.

    Those that run side by side on the ranks are alike in size. `weights_S` are those of `weigh_samples` (default: token mean).
    """
    weights_S = weigh_samples(samples, "token") if weights_S is None else weights_S
    planned = plan_packs([sample.ids_T for sample in samples], room.tokens, share=room.share)
    packs = [_lay_out(rows, samples, weights_S, fixed, room.share) for rows in planned]
    packs.sort(key=lambda pack: -len(pack.ids_N))
    if missing := -len(packs) % room.ranks:
        shortest = min(range(len(samples)), key=lambda row: len(samples[row].ids_T))
        copy = _lay_out([shortest], samples, weights_S, fixed, room.share)
        packs += [replace(copy, rows=(-1,), weights_M=np.zeros_like(copy.weights_M), teacher=None)] * missing
    return [packs[rank :: room.ranks] for rank in range(room.ranks)]


def count_tokens(packs: Sequence[Sequence[MicroBatch]]) -> int:
    """Tokens that are computed, copies included."""
    return sum(len(pack.ids_N) for share in packs for pack in share)


def _lay_out(rows: list[int], samples: Sequence[Sample], weights_S: np.ndarray, fixed: FixedLogprobs, share: bool) -> MicroBatch:
    chosen, known = [samples[row] for row in rows], fixed.of(rows)
    tree = grow_tree([sample.ids_T for sample in chosen], share=share)
    scored = [1 + np.flatnonzero(sample.mask_T[1:]) for sample in chosen]

    def pick(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([array[tokens] for array, tokens in zip(arrays, scored, strict=True)])

    counts = [len(tokens) for tokens in scored]
    plans = [sample.planning_T for sample in chosen if sample.planning_T is not None]
    weights_M = np.repeat(weights_S[rows], counts).astype(np.float32)
    return MicroBatch(
        ids_N=tree.ids_N,
        positions_N=tree.positions_N,
        runs=tree.runs,
        rows=tuple(rows),
        sequences_M=np.repeat(np.arange(len(rows)), counts),
        tokens_M=np.concatenate(scored),
        sources_M=np.concatenate([places[tokens - 1] for places, tokens in zip(tree.places, scored, strict=True)]),
        targets_M=pick([sample.ids_T for sample in chosen]),
        engine_M=pick([sample.logprobs_T for sample in chosen]),
        old_M=None if known.old is None else pick(known.old),
        reference_M=None if known.reference is None else pick(known.reference),
        advantages_M=pick([sample.advantages_T for sample in chosen]),
        weights_M=weights_M,
        planning_M=pick(plans) if len(plans) == len(chosen) else None,
        teacher=_join_teachers([sample.teacher for sample in chosen], scored, weights_M),
    )


def _join_teachers(teachers: Sequence[Teacher | None], scored: Sequence[np.ndarray], weights_M: np.ndarray) -> Teacher | None:
    """The samples' teachers as one; `scored`: the places in each sample that have a loss, among which are all that a teacher speaks of."""
    starts = np.cumsum([0, *(len(tokens) for tokens in scored)])
    known = [
        (one, start + np.searchsorted(tokens, one.places_H)) for one, start, tokens in zip(teachers, starts, scored, strict=False) if one
    ]
    if not known:
        return None
    places_H = np.concatenate([places for _, places in known])
    ids, logprobs, weights = (np.concatenate([getattr(one, name) for one, _ in known]) for name in ("ids_HK", "logprobs_HK", "weights_H"))
    return Teacher(places_H, ids, logprobs, weights * weights_M[places_H])
