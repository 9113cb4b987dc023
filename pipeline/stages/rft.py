"""Rejection fine-tuning: passing episodes -> samples for cross-entropy; knows no model and no optimiser (arXiv:2508.03501, section 3).

A turn that was malformed stays in the context and carries no loss; RL, by contrast, masks nothing by format.
"""

from collections.abc import Iterable

import numpy as np

from ..batch import merge_turns
from ..types import Episode, Sample, Stop


def rft_samples(episodes: Iterable[Episode]) -> tuple[Sample, ...]:
    """The resolved episodes, loss on their well-formed turns only; advantages are 1 on those tokens."""
    samples: list[Sample] = []
    for episode in episodes:
        if episode.stop is Stop.INFRA or episode.reward != 1.0:
            continue
        well_formed_N = np.array([turn.call is not None for turn in episode.turns], dtype=bool)
        samples += merge_turns(episode, np.ones(len(episode.turns)), well_formed_N)
    return tuple(samples)
