"""What credit reads of one group, and the error where something of it was not recorded; plain numpy.

Shapes: G graded episodes of the group, N_i turns of episode i, K continuations of a turn. Ragged: G arrays of shape (N_i,).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ragged = tuple[Floats, ...]
Futures = tuple[tuple[Floats, npt.NDArray[np.int64]], ...]
"""Per episode the rewards and the turns of its continuations, shape (N_i, K) each."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What credit reads of one group.

    Example: rewards_G [1, 0, 0], turns_G [3, 8, 5]: the first of three episodes resolved its task, in 3 turns.
    """

    rewards_G: Floats
    """float64: the reward R of the channel; of the hidden tests 0 or 1"""
    turns_G: npt.NDArray[np.int64]
    """int64: number of turns"""
    malformed: tuple[npt.NDArray[np.bool_], ...] | None = None
    """Per episode, shape (N_i,): the turn was malformed. None: not known."""
    passed: Ragged | None = None
    """Per episode, shape (N_i,): Phi_t, the share of visible tests that passed before turn t's action. None: not recorded."""
    anchors: tuple[tuple[str, ...], ...] | None = None
    """Per episode and turn: the hash of the working tree before the action. None: not recorded."""
    futures: Futures | None = None
    """How the continuations from each turn's state ended, before its action. None: not recorded."""


def require_passed(outcomes: Outcomes) -> Ragged:
    """Phi per turn; ValueError where it was not recorded."""
    if outcomes.passed is None:
        raise ValueError("an episode without the share of visible tests per turn: it was recorded without rollout.visible_tests")
    return outcomes.passed


def require_futures(outcomes: Outcomes) -> Futures:
    """The continuations; ValueError where they were not recorded."""
    if outcomes.futures is None:
        raise ValueError("an episode without continuations from each turn: it was recorded without rollout.continuations")
    return outcomes.futures
