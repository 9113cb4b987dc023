"""Samples that share beginnings -> packs in which every distinct token stands once; numpy only, knows no model.

Episodes of a group share the system prompt and the issue, per-turn samples of an episode share its history, forked episodes share
more. A pack lays out the trie of its samples, run by run: a run is what one sample adds to what stands already, and attends to its
own past, which is a few ranges of the pack. Nothing is padded.

Shapes: N tokens of a pack, M scored tokens, T tokens of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Range = tuple[int, int]
"""Half-open, of places in a pack."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens [start, stop) of a pack, whose past is the tokens of `past`, in order, and then themselves."""

    start: int
    stop: int
    past: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """The distinct tokens of some samples."""

    ids_N: np.ndarray
    positions_N: np.ndarray
    """Place of each token in its samples: what the model's position embedding must see."""
    runs: tuple[Run, ...]
    places: tuple[np.ndarray, ...]
    """Of each sample, in the order in which they were given: where its tokens stand, shape (T,)."""


def order_by_prefix(samples: Sequence[np.ndarray]) -> list[int]:
    """Indices in the order of the tokens, so that neighbours share the most."""
    return sorted(range(len(samples)), key=lambda index: samples[index].astype(">u4").tobytes())


def shared_length(first_T: np.ndarray, second_T: np.ndarray) -> int:
    """Tokens that both begin with."""
    length = min(len(first_T), len(second_T))
    differ = np.flatnonzero(first_T[:length] != second_T[:length])
    return int(differ[0]) if len(differ) else length


def plan_packs(samples: Sequence[np.ndarray], budget: int, *, share: bool = True) -> list[list[int]]:
    """Indices of the samples of each pack: at most `budget` distinct tokens, unless one sample alone has more."""
    packs: list[list[int]] = []
    room = 0
    for index in order_by_prefix(samples):
        ids_T = samples[index]
        added = len(ids_T) - (shared_length(samples[packs[-1][-1]], ids_T) if packs and share else 0)
        if packs and added <= room:
            packs[-1].append(index)
            room -= added
        else:
            packs.append([index])
            room = budget - len(ids_T)
    return packs


def grow_tree(samples: Sequence[np.ndarray], *, share: bool = True) -> Tree:
    """The trie of samples that stand in the order of `order_by_prefix` (in another order it shares less). Without `share`: side by side."""
    ids, positions, runs, places = [], [], [], []
    path: list[Range] = []
    size, before_T = 0, np.zeros(0, dtype=np.int64)
    for ids_T in samples:
        shared = shared_length(before_T, ids_T) if share else 0
        path = _cut(path, shared)
        added = len(ids_T) - shared
        if added:
            runs.append(Run(size, size + added, tuple(path)))
            path.append((size, size + added))
            ids.append(ids_T[shared:])
            positions.append(np.arange(shared, len(ids_T)))
            size += added
        places.append(np.concatenate([np.arange(start, stop) for start, stop in path]))
        before_T = ids_T
    return Tree(np.concatenate(ids), np.concatenate(positions), tuple(runs), tuple(places))


def _cut(path: Sequence[Range], length: int) -> list[Range]:
    """The first `length` tokens of a path."""
    kept: list[Range] = []
    for start, stop in path:
        if length <= 0:
            break
        kept.append((start, min(stop, start + length)))
        length -= stop - start
    return kept
