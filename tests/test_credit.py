"""Advantages: worked by hand, and the invariants U6 and U7."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config import CreditConfig
from pipeline.credit import assign_credit, episode, episode_no_std, has_signal, leave_one_out, length_penalty, shape_rewards
from pipeline.outcomes import Outcomes

SCHEMES = [episode, episode_no_std, leave_one_out]
rewards = st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=2, max_size=12).map(np.array)


def outcomes(rewards_G, turns_G):
    return Outcomes(np.array(rewards_G, dtype=np.float64), np.array(turns_G, dtype=np.int64))


def test_six_turns_by_hand():
    # Episodes of 3, 2 and 1 turns, the first resolved. No length penalty (L_thr >= T_max).
    # mean 1/3, deviations 2/3, -1/3, -1/3, population variance (4/9 + 1/9 + 1/9) / 3 = 2/9
    group = outcomes([1, 0, 0], [3, 2, 1])
    off = {"length_threshold": 8}
    std = np.sqrt(2) / 3 + 1e-6

    by_std = assign_credit(group, CreditConfig(kind="episode", **off), max_turns=8)
    assert [len(a) for a in by_std] == [3, 2, 1]
    np.testing.assert_allclose(np.concatenate(by_std), np.array([2, 2, 2, -1, -1, -1]) / 3 / std, rtol=1e-12)

    no_std = assign_credit(group, CreditConfig(kind="episode_no_std", **off), max_turns=8)
    np.testing.assert_allclose(np.concatenate(no_std), np.array([2, 2, 2, -1, -1, -1]) / 3)

    # others of the first: mean 0 -> 1; others of the second: mean 1/2 -> -1/2
    loo = assign_credit(group, CreditConfig(kind="leave_one_out", **off), max_turns=8)
    np.testing.assert_allclose(np.concatenate(loo), [1, 1, 1, -0.5, -0.5, -0.5])


def test_length_penalty_by_hand_enters_the_advantage():
    # L_thr 2, T_max 6: 4 turns cost -1/2, 6 turns cost -1. R_final = 1/2, -1, 0
    group = outcomes([1, 0, 0], [4, 6, 1])
    config = CreditConfig(kind="episode_no_std", length_threshold=2)
    np.testing.assert_allclose(shape_rewards(group, config, 6), [0.5, -1, 0])
    advantages = assign_credit(group, config, 6)
    np.testing.assert_allclose([a[0] for a in advantages], np.array([0.5, -1, 0]) + 0.5 / 3)


def test_length_penalty_on_resolved_spares_failures():
    group = outcomes([1, 0], [6, 6])
    np.testing.assert_allclose(shape_rewards(group, CreditConfig(length_threshold=2, length_penalty_on="resolved"), 6), [0, 0])
    np.testing.assert_allclose(shape_rewards(group, CreditConfig(length_threshold=2), 6), [0, -1])


@given(st.integers(1, 60), st.integers(1, 60))
def test_u7_the_penalty_is_zero_to_the_threshold_then_linear_to_minus_one(threshold, span):
    top = threshold + span
    penalty = length_penalty(np.arange(1, top + 1), threshold, top)
    at = dict(zip(range(1, top + 1), penalty, strict=True))
    assert at[threshold] == 0 and at.get(threshold - 1, 0) == 0 and at[top] == -1
    steps = np.diff(penalty[threshold - 1 :])
    np.testing.assert_allclose(steps, -1 / span)


def test_the_paper_s_stage_one_penalty_makes_a_success_at_40_turns_worth_0():
    assert shape_rewards(outcomes([1], [40]), CreditConfig(length_threshold=10), 40)[0] == 0


def test_a_threshold_at_the_turn_limit_switches_the_penalty_off():
    np.testing.assert_array_equal(length_penalty(np.array([1, 8]), 8, 8), [0, 0])


@pytest.mark.parametrize("scheme", SCHEMES)
@given(rewards_G=rewards)
def test_u6_advantages_sum_to_zero(scheme, rewards_G):
    assert abs(scheme(rewards_G).sum()) < 1e-6


@pytest.mark.parametrize("scheme", SCHEMES)
@given(rewards_G=rewards)
def test_advantages_follow_a_permutation_of_the_episodes(scheme, rewards_G):
    order = np.random.default_rng(0).permutation(len(rewards_G))
    np.testing.assert_allclose(scheme(rewards_G[order]), scheme(rewards_G)[order], rtol=1e-6, atol=1e-9)


@given(rewards_G=rewards, scale=st.floats(0.5, 5), shift=st.floats(-3, 3))
def test_u6_episode_credit_ignores_a_positive_affine_map(rewards_G, scale, shift):
    assume(rewards_G.std() > 0.01)
    np.testing.assert_allclose(episode(scale * rewards_G + shift), episode(rewards_G), rtol=1e-3, atol=1e-6)


@given(rewards_G=rewards, scale=st.floats(0.5, 5), shift=st.floats(-3, 3))
def test_u6_schemes_without_std_ignore_the_shift_and_keep_the_scale(rewards_G, scale, shift):
    for scheme in (episode_no_std, leave_one_out):
        np.testing.assert_allclose(scheme(scale * rewards_G + shift), scale * scheme(rewards_G), atol=1e-9)


@given(rewards_G=rewards)
def test_mean_centring_is_leave_one_out_scaled_by_g_minus_one_over_g(rewards_G):
    size = len(rewards_G)
    np.testing.assert_allclose(episode_no_std(rewards_G), leave_one_out(rewards_G) * (size - 1) / size, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rewards_G", [[0.0], [1.0], [0.1, 0.1, 0.1], [1.0, 1.0]])
def test_u6_equal_rewards_and_groups_of_one_give_zeros_never_nan(scheme, rewards_G):
    np.testing.assert_allclose(scheme(np.array(rewards_G)), 0, atol=1e-9)


def test_the_filter_looks_at_outcomes_or_at_shaped_rewards():
    failed_differently = outcomes([0, 0], [2, 6])
    late_success = outcomes([1, 0], [6, 1])
    by_outcome, by_shape = CreditConfig(length_threshold=2), CreditConfig(length_threshold=2, filter_on="shaped")
    assert not has_signal(failed_differently, by_outcome, 6) and has_signal(failed_differently, by_shape, 6)
    assert has_signal(late_success, by_outcome, 6) and not has_signal(late_success, by_shape, 6)
