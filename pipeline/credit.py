"""Rewards -> advantages for one group, in plain numpy; knows nothing of tokens, models or sandboxes.

Only graded episodes come in: an INFRA episode has no reward and never enters a mean, a std or a filter (batch.py leaves it out).
A scheme maps the group's shaped rewards to one advantage per episode; `assign_credit` spreads it over the episode's turns, so
that turn-level schemes (next-turn reward, return-to-go, GiGPO) fit the same signature: one array of shape (N_i,) per episode.

Left out so far: turn-level schemes, Dr.GRPO, episode sampling by |A|.
Shapes: G graded episodes of the group, N_i turns of episode i.
"""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from .config import CreditConfig

Floats = npt.NDArray[np.float64]

STD_DELTA = 1e-6
"""Added to the std; small against the std of any mixed group of 0/1 rewards (>= 0.1 up to G = 100)."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What credit reads of one group.

    Example: rewards_G [1, 0, 0], turns_G [3, 8, 5]: the first of three episodes resolved its task, in 3 turns.
    """

    rewards_G: Floats
    """float64: the graded reward R, 0 or 1"""
    turns_G: npt.NDArray[np.int64]
    """int64: number of turns"""


def length_penalty(turns_G: npt.NDArray[np.int64], threshold: int, max_turns: int) -> Floats:
    """R_len = 0 for T < L_thr, (L_thr - T) / (T_max - L_thr) from there on: 0 at L_thr, -1 at T_max (arXiv:2508.03501).

    L_thr >= T_max switches it off. Trap: with L_thr = 10 and T_max = 40 a success at 40 turns scores 0, like a quick failure.
    """
    if threshold >= max_turns:
        return np.zeros(len(turns_G))
    return np.minimum(0.0, (threshold - turns_G) / (max_turns - threshold))


def shape_rewards(outcomes: Outcomes, config: CreditConfig, max_turns: int) -> Floats:
    """R_final = R + R_len, shape (G,); with length_penalty_on "resolved" only successes pay for their length.

    Trap: on "all", failures of different lengths differ in R_final, so failing fast is rewarded: this is what `filter_on` is for.
    """
    penalty_G = length_penalty(outcomes.turns_G, config.length_threshold, max_turns)
    match config.length_penalty_on:
        case "all":
            return outcomes.rewards_G + penalty_G
        case "resolved":
            paid_G: Floats = np.where(outcomes.rewards_G > 0, penalty_G, 0.0)
            return outcomes.rewards_G + paid_G
        case _:
            assert_never(config.length_penalty_on)


def has_signal(outcomes: Outcomes, config: CreditConfig, max_turns: int) -> bool:
    """Whether the group's outcomes (or shaped rewards, by `filter_on`) differ; a constant group is dropped.

    On "outcome" an all-failed group is dropped even where its lengths differ; this fits the paper's 2-8 optimiser steps per iteration.
    """
    match config.filter_on:
        case "outcome":
            return bool(np.ptp(outcomes.rewards_G) > 0)
        case "shaped":
            return bool(np.ptp(shape_rewards(outcomes, config, max_turns)) > 0)
        case _:
            assert_never(config.filter_on)


def episode(rewards_G: Floats) -> Floats:
    """A_i = (R_i - mean) / (std + delta), std over the population (divided by G, not G - 1) (GRPO; DAPO, arXiv:2503.14476).

    Zero-sum, zeros for equal rewards and for a group of one, invariant to a positive affine map of the rewards up to delta.
    Bias: a ratio estimator; groups with rare outcomes weigh more than in the gradient of the mean reward.
    """
    return (rewards_G - float(rewards_G.mean())) / (float(rewards_G.std()) + STD_DELTA)


def episode_no_std(rewards_G: Floats) -> Floats:
    """A_i = R_i - mean (the credit of Dr.GRPO, arXiv:2503.20783).

    Zero-sum; (G - 1) / G times leave-one-out: the policy gradient's direction, a smaller step.
    """
    return rewards_G - float(rewards_G.mean())


def leave_one_out(rewards_G: Floats) -> Floats:
    """A_i = R_i - mean of the others (RLOO, arXiv:2402.14740): the baseline is independent of episode i, so it is unbiased.

    Zero-sum; zeros for a group of one, which has no others.
    """
    if len(rewards_G) < 2:
        return np.zeros(len(rewards_G))
    others_G = (float(rewards_G.sum()) - rewards_G) / (len(rewards_G) - 1)
    return rewards_G - others_G


def assign_credit(outcomes: Outcomes, config: CreditConfig, max_turns: int) -> tuple[Floats, ...]:
    """One array of advantages per episode, shape (N_i,): one per turn, taken by each sampled token of that turn.

    Normalised over episodes, never over turns: otherwise long episodes would dominate the baseline.
    """
    shaped_G = shape_rewards(outcomes, config, max_turns)
    match config.kind:
        case "episode":
            advantages_G = episode(shaped_G)
        case "episode_no_std":
            advantages_G = episode_no_std(shaped_G)
        case "leave_one_out":
            advantages_G = leave_one_out(shaped_G)
        case _:
            assert_never(config.kind)
    return tuple(np.full(int(turns), advantage) for turns, advantage in zip(outcomes.turns_G, advantages_G, strict=True))
