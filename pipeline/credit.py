"""Rewards -> advantages for one group, in plain numpy; knows nothing of tokens, models or sandboxes.

Only graded episodes come in: an INFRA episode has no reward and never enters a mean, a std or a filter (batch.py leaves it out).
`assign_credit` gives one array of shape (N_i,) per episode: one advantage per turn, taken by each sampled token of the turn.

What each scheme promises is in its docstring and proved in tests/test_credit_proofs.py; "cos" and "ratio" are of its expectation with
the exact gradient of E[R], both of the MDP in pipeline/proofs.py at G = 2 (scripts/bench/credit_bias.py prints all of them).
Dr.GRPO is episode_no_std with loss.aggregation constant.
Shapes: G graded episodes of the group, N_i turns of episode i, N the most turns. Ragged: G arrays of shape (N_i,).
"""

from typing import assert_never

import numpy as np
import numpy.typing as npt

from .config import CreditConfig
from .outcomes import Floats, Outcomes, Ragged, require_futures, require_passed

STD_DELTA = 1e-6
"""Added to the std; small against the std of any mixed group of 0/1 rewards (>= 0.1 up to G = 100)."""


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
    """Whether the group's outcomes (or shaped rewards with what turns earned, by `filter_on`) differ; a constant group is dropped.

    On "outcome" an all-failed group is dropped even where its lengths differ; this fits the paper's 2-8 optimiser steps per iteration.
    Trap: turn-level schemes learn from an all-failed group as well, and with "outcome" they do not get it: potential is biased then
    (cos .99, ratio 1.16 at G = 2), and vine gets half (.998, .47). On "shaped" a group is kept where a turn earned something, and always
    for those two.
    """
    match config.filter_on:
        case "outcome":
            return _differ(outcomes.rewards_G, config.min_std)
        case "shaped":
            shaped_G = shape_rewards(outcomes, config, max_turns)
            return _differ(shaped_G, config.min_std) or _turns_differ(outcomes, config)
        case _:
            assert_never(config.filter_on)


def _differ(values_G: Floats, min_std: float) -> bool:
    return bool(np.ptp(values_G) > 0 and values_G.std() > min_std)


def _turns_differ(outcomes: Outcomes, config: CreditConfig) -> bool:
    return config.kind in ("potential", "vine") or any(bool(np.any(earned_N != 0)) for earned_N in earned_by_turn(outcomes, config))


def earned_by_turn(outcomes: Outcomes, config: CreditConfig) -> Ragged:
    """What each turn earned by itself: Phi_t+1 - Phi_t where tests pay (0 for the last turn), minus format_penalty where malformed.

    ValueError where what the configuration asks for was not recorded.
    """
    earned = [np.zeros(int(turns)) for turns in outcomes.turns_G]
    if config.turn_reward == "tests":
        for earned_N, passed_N in zip(earned, require_passed(outcomes), strict=True):
            earned_N[:-1] += np.diff(passed_N)
    if config.format_penalty:
        if outcomes.malformed is None:
            raise ValueError("credit.format_penalty: it is not known which turns were malformed")
        for earned_N, malformed_N in zip(earned, outcomes.malformed, strict=True):
            earned_N -= config.format_penalty * malformed_N
    return tuple(earned)


def pay_last(earned: Ragged, shaped_G: Floats) -> Ragged:
    """Rewards per turn: what the turn earned, and R_final with the last turn."""
    paid = tuple(earned_N.copy() for earned_N in earned)
    for paid_N, shaped in zip(paid, shaped_G, strict=True):
        paid_N[-1:] += shaped
    return paid


def episode(rewards_G: Floats) -> Floats:
    """A_i = (R_i - mean) / (std + delta), std over the population (divided by G, not G - 1) (GRPO; DAPO, arXiv:2503.14476).

    Zero-sum, zeros for equal rewards and for a group of one, invariant to a positive affine map of the rewards up to delta.
    Bias: a ratio estimator; groups with rare outcomes weigh more than in the gradient of the mean reward. With 0/1
    rewards that is a scale alone (cos 1), another one for each task: at G = 4 ratio 1.63 where a third succeeds, 1.73 where 1 in 400 does.
    """
    return (rewards_G - float(rewards_G.mean())) / (float(rewards_G.std()) + STD_DELTA)


def episode_no_std(rewards_G: Floats) -> Floats:
    """A_i = R_i - mean (the credit of Dr.GRPO, arXiv:2503.20783).

    Zero-sum; (G - 1) / G times leave-one-out: the policy gradient's direction, a smaller step. Cos 1, ratio .50
    at G = 2 and .75 at G = 4.
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


def ms_grpo(rewards: Ragged) -> Floats:
    """R_e = sum of the episode's step rewards, then `episode` over the EPISODES, never over turn samples (arXiv:2508.10839).

    Promises what `episode` does, of R_e. Bias: of `episode`; with turn rewards its gradient is that of E[R_e], not of E[R].
    """
    return episode(np.array([rewards_N.sum() for rewards_N in rewards]))


def return_to_go(rewards: Ragged, gamma: float) -> Ragged:
    """A_t = G_t - mean of the others' G at turn t (their last one where they are shorter), G_t = sum_k>=t gamma^(k-t) r_k.

    Zeros for a group of one; zeros for equal final rewards where gamma = 1 and turns earn nothing; not zero-sum.
    Unbiased for E[sum r] at gamma = 1, because the others do not depend on this episode. gamma = .9: cos .999, ratio .96.
    With turn_reward tests its objective is E[R + Phi_last - Phi_first], not E[R]: cos of the two .57.
    """
    to_go = tuple(discount(rewards_N, gamma) for rewards_N in rewards)
    return leave_one_out_by_turn(to_go)


def next_turn(rewards: Ragged) -> Ragged:
    """return_to_go with gamma = 0: each turn is credited with its own reward alone. The myopic baseline, for comparison.

    Zeros for a group of one; not zero-sum. Bias: what an action makes possible later is invisible. Cos -.59, ratio 1.3.
    """
    return return_to_go(rewards, 0.0)


def turn_normalised(rewards: Ragged) -> Ragged:
    """A_t = sum_k>=t (r_k - mean) / (std + delta) over all turns of the group (GRPO with process supervision, arXiv:2402.03300).

    Zeros where all turn rewards are equal, at any lengths; not zero-sum. Bias: an episode that makes one turn more pays the mean
    reward for it, a hidden -E[r] per extra turn, because a baseline is taken off turns that the policy decides to have.
    It measures .11 per extra turn at G = 2, .19 at G = 4, E[r] = .20; cos .97 with the gradient of E[sum r], .52 with that of E[R].
    """
    every = np.concatenate(rewards)
    if not len(every):
        return rewards
    scale = float(every.std()) + STD_DELTA
    return tuple(discount((rewards_N - float(every.mean())) / scale, 1.0) for rewards_N in rewards)


def gigpo(rewards: Ragged, anchors: tuple[tuple[str, ...], ...], gamma: float, weight: float) -> Ragged:
    """A_episode + w A_step, A_step = G_t normalised over the group's turns that start from the same anchor (arXiv:2505.10978).

    A turn that is alone with its anchor has A_step 0. Zero-sum over the turns of each anchor in A_step; zeros for equal rewards at
    gamma = 1 and for a group of one where no state comes twice. Bias: ratios twice, and an
    episode is in its own baseline. Cos .995, ratio 1.8 without turn rewards.
    """
    to_go = np.concatenate([discount(rewards_N, gamma) for rewards_N in rewards])
    flat = np.array([anchor for episode_anchors in anchors for anchor in episode_anchors])
    step = np.zeros_like(to_go)
    for anchor in np.unique(flat):
        step[flat == anchor] = episode(to_go[flat == anchor])
    whole_G = ms_grpo(rewards)
    steps = np.split(step, np.cumsum([len(rewards_N) for rewards_N in rewards])[:-1])
    return tuple(whole + weight * step_N for whole, step_N in zip(whole_G, steps, strict=True))


def mt_grpo(earned: Ragged, shaped_G: Floats, outcome_weight: float) -> Ragged:
    """A_turn + lambda A_outcome; A_outcome alone for the last turn (arXiv:2505.11821, where there are two turns).

    A_turn: what turn t earned, normalised over the group's episodes that have a turn after t. Zeros for a group of one and for equal
    rewards. Bias: A_turn is myopic, and ratios. Cos -.09, ratio .96 at lambda = 1.
    """
    outcome_G = outcome_weight * episode(shaped_G)
    credit = tuple(np.full(len(earned_N), outcome) for earned_N, outcome in zip(earned, outcome_G, strict=True))
    for turn in range(max(len(earned_N) for earned_N in earned) - 1):
        alive = [index for index, earned_N in enumerate(earned) if len(earned_N) > turn + 1]
        normalised = episode(np.array([earned[index][turn] for index in alive]))
        for index, value in zip(alive, normalised, strict=True):
            credit[index][turn] += value
    return credit


def potential(passed: Ragged, shaped_G: Floats, gamma: float) -> Ragged:
    """return_to_go of R_final and gamma Phi_t+1 - Phi_t, Phi = visible tests that pass, Phi(terminal) = 0 (Ng, Harada, Russell 1999).

    The sum telescopes to gamma^(N-1-t) R - Phi_t: the potential acts as a baseline that depends on the state, and moves no optimum.
    Zeros for a group of one; neither zero-sum nor zeros for equal rewards. Unbiased for E[R] at gamma = 1. gamma = .9: cos .999,
    ratio .96.
    """
    shaped = tuple(gamma * np.append(phi_N[1:], 0.0) - phi_N if len(phi_N) else phi_N for phi_N in passed)
    return return_to_go(pay_last(shaped, shaped_G), gamma)


def vine(values: Ragged, shaped_G: Floats) -> Ragged:
    """A_t = V(s_t+1) - V(s_t), V the mean R_final of episodes that go on from there, V(terminal) = R_final (VinePPO, arXiv:2410.01679).

    No other episode is read; nothing is normalised: neither zero-sum nor zeros for equal rewards or a group of one. Unbiased for E[R] at
    any number of continuations, because those from s_t do not depend on turn t's action and those from s_t+1 estimate what it is worth.
    """
    return tuple(np.diff(np.append(value_N, shaped)) for value_N, shaped in zip(values, shaped_G, strict=True))


def state_values(outcomes: Outcomes, config: CreditConfig, max_turns: int) -> Ragged:
    """V of each turn's state, shape (N_i,): the mean R_final of its continuations, each with the length penalty of its own turns."""
    found = []
    for rewards_NK, turns_NK in require_futures(outcomes):
        flat = Outcomes(rewards_NK.ravel(), turns_NK.ravel())
        found.append(shape_rewards(flat, config, max_turns).reshape(rewards_NK.shape).mean(axis=1))
    return tuple(found)


def discount(rewards_N: Floats, gamma: float) -> Floats:
    """G_t = r_t + gamma G_t+1, shape (N,)."""
    to_go_N = rewards_N.astype(np.float64)
    for turn in range(len(rewards_N) - 2, -1, -1):
        to_go_N[turn] += gamma * to_go_N[turn + 1]
    return to_go_N


def leave_one_out_by_turn(values: Ragged) -> Ragged:
    """`leave_one_out` of each turn's values over the group; an episode that has ended lends its last value (0 where it had no turn)."""
    turns = max(len(value_N) for value_N in values)
    padded_GN = np.zeros((len(values), turns))
    for row_N, value_N in zip(padded_GN, values, strict=True):
        row_N[: len(value_N)] = value_N
        row_N[len(value_N) :] = value_N[-1] if len(value_N) else 0.0
    credit_GN = np.stack([leave_one_out(column_G) for column_G in padded_GN.T], axis=1) if turns else padded_GN
    return tuple(row_N[: len(value_N)] for row_N, value_N in zip(credit_GN, values, strict=True))


def assign_credit(outcomes: Outcomes, config: CreditConfig, max_turns: int) -> Ragged:
    """One array of advantages per episode, shape (N_i,). ValueError where a scheme's inputs were not recorded.

    Normalised over episodes, never over turns, but where a scheme's docstring says so.
    """
    shaped_G = shape_rewards(outcomes, config, max_turns)
    earned = earned_by_turn(outcomes, config)
    rewards = pay_last(earned, shaped_G)
    match config.kind:
        case "episode":
            return spread(episode(shaped_G), outcomes)
        case "episode_no_std":
            return spread(episode_no_std(shaped_G), outcomes)
        case "leave_one_out":
            return spread(leave_one_out(shaped_G), outcomes)
        case "ms_grpo":
            return spread(ms_grpo(rewards), outcomes)
        case "next_turn":
            return next_turn(rewards)
        case "return_to_go":
            return return_to_go(rewards, config.gamma)
        case "turn_normalised":
            return turn_normalised(rewards)
        case "gigpo":
            if outcomes.anchors is None:
                raise ValueError("an episode without the hash of its working tree per turn: it was recorded without rollout.anchors")
            return gigpo(rewards, outcomes.anchors, config.gamma, config.turn_weight)
        case "mt_grpo":
            return mt_grpo(earned, shaped_G, config.outcome_weight)
        case "potential":
            return potential(require_passed(outcomes), shaped_G, config.gamma)
        case "vine":
            return vine(state_values(outcomes, config, max_turns), shaped_G)
        case _:
            assert_never(config.kind)


def spread(advantages_G: Floats, outcomes: Outcomes) -> Ragged:
    """The episode's advantage for each of its turns."""
    return tuple(np.full(int(turns), advantage) for turns, advantage in zip(outcomes.turns_G, advantages_G, strict=True))
