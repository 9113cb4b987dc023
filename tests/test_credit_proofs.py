"""Proofs of credit: every turn-level scheme by hand, what each promises, its exact bias on a finite MDP, and weighted draws."""

import itertools
import json
import math
import pathlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.batch import build_batch
from pipeline.config import CreditConfig
from pipeline.credit import assign_credit, discount, has_signal, potential, turn_normalised
from pipeline.draw import draw_counts, draw_factors
from pipeline.outcomes import Outcomes
from pipeline.proofs import (
    CLAIMS,
    LOGITS,
    PATHS,
    PHI,
    Path,
    ascend,
    centred_by_index,
    compare,
    endings,
    exact_gradient,
    expected_estimate,
    hidden_cost,
    outcomes_of,
    path_probability,
    predicted_bias,
    probabilities,
    success,
    sum_rewards,
    walk,
)
from pipeline.types import Completion, Episode, Future, Group, Stop, ToolCall, Turn
from tasks import Outcome, Verdict

ROOT = math.sqrt(2)
OFF = 1  # max_turns below every length_threshold: no length penalty


def credit(group, kind, **keys):
    return assign_credit(group, CreditConfig(kind=kind, **keys), OFF)


def make_group(rewards, passed, anchors=None, malformed=None):
    """Continuations: one from each turn, worth the share of tests that passes there."""
    return Outcomes(
        np.array(rewards, dtype=np.float64),
        np.array([len(phi) for phi in passed], dtype=np.int64),
        tuple(np.zeros(len(phi), bool) for phi in passed) if malformed is None else tuple(np.array(row, bool) for row in malformed),
        tuple(np.array(phi, dtype=np.float64) for phi in passed),
        anchors or tuple(tuple(f"{phi:.1f}" for phi in row) for row in passed),
        tuple((np.array(phi, dtype=np.float64)[:, None], np.ones((len(phi), 1), np.int64)) for phi in passed),
    )


# Episodes of 3, 2 and 1 turns, the first resolved. Visible tests pay -1/4, 1/2, then R = 1 | 1/2, then 0 | 0.
SIX = make_group([1, 0, 0], [[0.5, 0.25, 0.75], [0.5, 1.0], [0.5]], (("a", "b", "a"), ("a", "b"), ("c",)), [[0, 0, 0], [0, 1, 0][:2], [0]])
STD_OF_TURNS = math.sqrt(1.5625 / 6 - (1.75 / 6) ** 2)
BY_HAND = {
    # sums of step rewards 1, -1/2, 0: deviations 5/6, -4/6, -1/6, variance 42/108
    "ms_grpo": (dict(format_penalty=0.5), np.array([5, 5, 5, -4, -4, -1]) / 6 / math.sqrt(42 / 108)),
    # turn 0: -1/4 - mean(1/2, 0), 1/2 - mean(-1/4, 0), 0 - mean(-1/4, 1/2); turn 1: 1/2 - 0, 0 - mean(1/2, 0); turn 2: 1 - 0
    "next_turn": (dict(turn_reward="tests"), [-0.5, 0.5, 1, 0.625, -0.25, -0.125]),
    # to go 5/4, 3/2, 1 | 1/2, 0 | 0
    "return_to_go": (dict(turn_reward="tests"), [1, 1.5, 1, -0.125, -0.75, -0.875]),
    # mean of the six rewards 7/24; to go of what is left over: 3/8, 11/12, 17/24 | -1/12, -7/24 | -7/24
    "turn_normalised": (dict(turn_reward="tests"), np.array([9, 22, 17, -2, -7, -7]) / 24 / STD_OF_TURNS),
    # episode: sqrt 2, -1/sqrt 2; anchor a: returns 1, 1, 0 -> 1/sqrt 2, 1/sqrt 2, -sqrt 2; b: 1, 0 -> 1, -1; c alone -> 0
    "gigpo": (dict(turn_weight=2.0), [2 * ROOT, ROOT + 2, 2 * ROOT, -1 / ROOT - 2 * ROOT, -1 / ROOT - 2, -1 / ROOT]),
    # outcome twice: 2 sqrt 2, -sqrt 2; turn 0 earns -1/4 and 1/2 -> -1, 1; turn 1 is one alone -> 0
    "mt_grpo": (dict(turn_reward="tests", outcome_weight=2.0), [2 * ROOT - 1, 2 * ROOT, 2 * ROOT, 1 - ROOT, -ROOT, -ROOT]),
    # R - Phi: 1/2, 3/4, 1/4 | -1/2, -1 | -1/2
    "potential": (dict(), [1, 1.5, 1, -0.5, -1.125, -0.5]),
    # values 1/2, 1/4, 3/4, then R = 1 | 1/2, 1, then 0 | 1/2, then 0
    "vine": (dict(), [-0.25, 0.5, 0.25, 0.5, -1, -0.5]),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_six_turns_by_hand(kind):
    keys, expected = BY_HAND[kind]
    found = credit(SIX, kind, **keys)
    assert [len(advantages_N) for advantages_N in found] == [3, 2, 1]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=2e-5)


def test_discounted_return_to_go_by_hand():
    # gamma 1/2: to go 1/4, 1, 1 | 1/2, 0 | 0
    found = np.concatenate(credit(SIX, "return_to_go", turn_reward="tests", gamma=0.5))
    np.testing.assert_allclose(found, [0, 1, 1, 0.375, -0.5, -0.375])


# --- what each scheme promises ------------------------------------------------------------------------------------

KEYS = {
    "episode": {},
    "episode_no_std": {},
    "leave_one_out": {},
    "ms_grpo": dict(turn_reward="tests"),
    "next_turn": dict(turn_reward="tests"),
    "return_to_go": dict(turn_reward="tests"),
    "turn_normalised": dict(turn_reward="tests"),
    "gigpo": dict(turn_reward="tests"),
    "mt_grpo": dict(turn_reward="tests"),
    "potential": {},
    "vine": {},
}
EPISODE_LEVEL = ["episode", "episode_no_std", "leave_one_out", "ms_grpo"]
"""One advantage for all turns, zero-sum over episodes, and how long an episode is changes nothing."""
ZEROS_FOR_EQUAL = [*EPISODE_LEVEL, "return_to_go", "gigpo", "mt_grpo", "potential"]
"""Equal rewards, turns that earn nothing, any lengths. Not next_turn and turn_normalised: R comes with the last turn."""
ZEROS_FOR_ONE = [*EPISODE_LEVEL, "next_turn", "return_to_go", "mt_grpo", "potential"]
"""Not turn_normalised (over the turns of one episode) and gigpo (where a state comes twice)."""
AFFINE = ["episode", "ms_grpo", "gigpo", "turn_normalised"]
"""A positive factor on all rewards changes nothing, up to delta."""

shares = st.integers(0, 8).map(lambda eighths: eighths / 8)
some_episode = st.tuples(st.sampled_from([0.0, 1.0]), st.lists(shares, min_size=1, max_size=4))
groups = st.lists(some_episode, min_size=2, max_size=6).map(lambda rows: make_group([row[0] for row in rows], [row[1] for row in rows]))


def permute(group, order):
    pick = lambda rows: tuple(rows[index] for index in order)  # noqa: E731
    ragged = (pick(rows) for rows in (group.malformed, group.passed, group.anchors, group.futures))
    return Outcomes(group.rewards_G[order], group.turns_G[order], *ragged)


def test_every_kind_has_its_promises_listed_here():
    kinds = set(CreditConfig.model_fields["kind"].annotation.__args__)
    assert kinds == set(KEYS) == {claim.credit.kind for claim in CLAIMS}


@pytest.mark.parametrize("kind", KEYS)
@given(group=groups, seed=st.integers(0, 99))
def test_advantages_follow_a_permutation_of_the_episodes(kind, group, seed):
    order = np.random.default_rng(seed).permutation(len(group.turns_G))
    straight, mixed = credit(group, kind, **KEYS[kind]), credit(permute(group, order), kind, **KEYS[kind])
    for place, index in enumerate(order):
        np.testing.assert_allclose(mixed[place], straight[index], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", EPISODE_LEVEL)
@given(group=groups)
def test_episode_level_credit_is_one_number_an_episode_and_zero_sum(kind, group):
    found = credit(group, kind, **KEYS[kind])
    assert all(np.ptp(advantages_N) == 0 for advantages_N in found)
    assert abs(sum(advantages_N[0] for advantages_N in found)) < 1e-6


@pytest.mark.parametrize("kind", EPISODE_LEVEL)
@given(group=groups, extra=st.integers(1, 3))
def test_lengths_matter_nowhere_in_episode_level_credit(kind, group, extra):
    longer = make_group(group.rewards_G, [*[list(phi_N) + [phi_N[-1]] * extra for phi_N in group.passed[:1]], *group.passed[1:]])
    for short, long in zip(credit(group, kind, **KEYS[kind]), credit(longer, kind, **KEYS[kind]), strict=True):
        np.testing.assert_allclose(short[0], long[0], atol=1e-9)


@pytest.mark.parametrize("kind", ["next_turn", "turn_normalised"])
def test_lengths_matter_where_turns_are_compared_with_turns(kind):
    found = credit(make_group([1, 1], [[0.5], [0.5, 0.5]]), kind, **KEYS[kind])
    assert max(np.abs(np.concatenate(found))) > 0.1


@pytest.mark.parametrize("kind", ZEROS_FOR_EQUAL)
@given(lengths=st.lists(st.integers(1, 4), min_size=2, max_size=5), reward=st.sampled_from([0.0, 1.0]), phi=shares)
def test_equal_rewards_give_zeros_where_promised(kind, lengths, reward, phi):
    group = make_group([reward] * len(lengths), [[phi] * length for length in lengths])
    np.testing.assert_allclose(np.concatenate(credit(group, kind, **KEYS[kind])), 0, atol=1e-9)


@pytest.mark.parametrize("kind", ZEROS_FOR_ONE)
@given(row=some_episode)
def test_a_group_of_one_gives_zeros_where_promised(kind, row):
    np.testing.assert_allclose(np.concatenate(credit(make_group([row[0]], [row[1]]), kind, **KEYS[kind])), 0, atol=1e-9)


@pytest.mark.parametrize("kind", KEYS)
@given(group=groups)
def test_no_scheme_gives_anything_but_finite_numbers(kind, group):
    assert all(np.isfinite(advantages_N).all() for advantages_N in credit(group, kind, **KEYS[kind]))


@pytest.mark.parametrize("kind", AFFINE)
@given(group=groups, scale=st.floats(0.5, 4))
def test_a_positive_factor_on_all_rewards_changes_nothing_up_to_delta(kind, group, scale):
    scaled = replace(group, rewards_G=group.rewards_G * scale, passed=tuple(phi_N * scale for phi_N in group.passed))
    before, after = (np.concatenate(credit(g, kind, **KEYS[kind])) for g in (group, scaled))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["next_turn", "return_to_go", "potential"])
@given(group=groups, phi=shares)
def test_what_came_before_a_turn_does_not_change_its_credit(kind, group, phi):
    assume(len(group.passed[0]) > 2)
    other = replace(group, passed=(np.array([phi, *group.passed[0][1:]]), *group.passed[1:]))
    np.testing.assert_array_equal(credit(group, kind, **KEYS[kind])[0][1:], credit(other, kind, **KEYS[kind])[0][1:])


@given(group=groups, gamma=st.sampled_from([0.5, 0.9, 1.0]))
def test_the_potential_telescopes_to_a_baseline_that_depends_on_the_state(group, gamma):
    first, rest = potential(group.passed, group.rewards_G, gamma), potential(group.passed, group.rewards_G * 0, gamma)
    flat = potential(tuple(phi_N * 0 for phi_N in group.passed), group.rewards_G, gamma)
    for whole, shaped, plain in zip(first, rest, flat, strict=True):
        np.testing.assert_allclose(whole, shaped + plain, atol=1e-9)
    phi_N = group.passed[0]
    to_go = discount(gamma * np.append(phi_N[1:], 0) - phi_N, gamma)
    np.testing.assert_allclose(to_go, -phi_N, atol=1e-9)


# --- from episodes to samples -------------------------------------------------------------------------------------


def attempt(name, outcome, shares_N, group="g", stop=Stop.SUBMITTED):
    turns, prompt = [], (5,)
    for number, phi in enumerate(shares_N):
        ids = (6 + number,) * (number + 1)
        done = Completion(ids, (-0.5,) * len(ids), "", 0, True)
        futures = (Future(phi, 1), Future(1.0, 2))
        turns.append(Turn(prompt, done, ToolCall("bash", {}), "", anchor=f"{phi}", passed=phi, futures=futures))
        prompt = (*prompt, *ids, 9)
    return Episode(name, group, "t", tuple(turns), stop, "", None if outcome is None else Verdict("t", outcome))


def two_groups(second_solves):
    one = Group("g", "t", 0, (attempt("a", Outcome.RESOLVED, [0.5, 0.0, 1.0]), attempt("b", Outcome.UNRESOLVED, [0.5, 0.75])))
    reward = Outcome.RESOLVED if second_solves else Outcome.UNRESOLVED
    return [one, Group("h", "u", 0, (attempt("c", reward, [0.25], "h"), attempt("d", Outcome.UNRESOLVED, [0.25, 0.5], "h")))]


def config_of(kind, **keys):
    return CreditConfig(kind=kind, **KEYS[kind], **keys)


@pytest.mark.parametrize("kind", KEYS)
def test_no_group_reads_another(kind):
    alone, beside = (build_batch(two_groups(solves), config_of(kind), OFF).samples[:2] for solves in (False, True))
    for left, right in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(left.advantages_T, right.advantages_T)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("hidden", [Outcome.RESOLVED, Outcome.INFRA, None])
def test_u10_an_infra_episode_changes_nothing(kind, hidden):
    group = two_groups(False)[0]
    with_infra = replace(group, episodes=(*group.episodes, attempt("x", hidden, [1.0, 0.0], stop=Stop.INFRA)))
    plain, other = (build_batch([g], config_of(kind), OFF).samples for g in (group, with_infra))
    assert len(plain) == len(other) == 2
    for left, right in zip(plain, other, strict=True):
        np.testing.assert_array_equal(left.advantages_T, right.advantages_T)


@pytest.mark.parametrize("kind", KEYS)
def test_one_sample_a_turn_changes_neither_a_token_s_advantage_nor_its_context(kind):
    merged, cut = (build_batch(two_groups(True), config_of(kind, samples=samples), OFF) for samples in ("merged", "per_turn"))
    assert len(merged.samples) == 4 and len(cut.samples) == 8 and merged.tokens == cut.tokens
    assert all(sample.mask_T[-1] and not np.diff(np.flatnonzero(sample.mask_T)).max(initial=1) > 1 for sample in cut.samples)
    values = [np.concatenate([s.advantages_T[s.mask_T] for s in batch.samples]) for batch in (merged, cut)]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("gigpo", "rollout.anchors"), ("potential", "visible_tests"), ("next_turn", "visible_tests"), ("vine", "rollout.continuations")],
)
def test_inputs_that_were_not_recorded_are_an_error_never_zeros(kind, missing):
    group = two_groups(False)[0]
    bare = [replace(e, turns=tuple(forget(turn, kind) for turn in e.turns)) for e in group.episodes]
    with pytest.raises(ValueError, match=missing):
        build_batch([replace(group, episodes=(group.episodes[0], bare[1]))], config_of(kind), OFF)


def forget(turn, kind):
    missing = {"gigpo": {"anchor": ""}, "vine": {"futures": turn.futures[:1]}}
    return replace(turn, **missing.get(kind, {"passed": None}))


# --- bias on a finite MDP -----------------------------------------------------------------------------------------


def test_the_exact_gradient_is_that_of_finite_differences():
    gradient, step = exact_gradient(lambda path: path.reward), 1e-6
    for index in range(LOGITS.size):
        nudge = np.zeros(LOGITS.size)
        nudge[index] = step
        both = [success(LOGITS + sign * nudge.reshape(LOGITS.shape)) for sign in (1, -1)]
        assert gradient[index] == pytest.approx((both[0] - both[1]) / (2 * step), abs=1e-8)
    assert sum(path_probability(path, probabilities(LOGITS)) for path in walk()) == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.unbiased_for], ids=lambda claim: claim.name)
def test_what_claims_to_be_unbiased_is(claim, size):
    truth = exact_gradient((lambda path: path.reward) if claim.unbiased_for == "R" else sum_rewards)
    np.testing.assert_allclose(expected_estimate(claim, size), truth, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "".join(map(str, path.actions)))
def test_one_continuation_is_as_good_as_the_exact_value_on_average(path):
    """All ways in which one continuation from each state can end, by their chances; the estimate is linear in them."""
    pi, mean = probabilities(LOGITS), 0.0
    choices = [endings(path, turn) for turn in range(len(path.states))]
    for drawn in itertools.product(*choices):
        chances = [path_probability(one, pi) / sum(path_probability(o, pi) for o in some) for one, some in zip(drawn, choices, strict=True)]
        futures = (np.array([[one.reward] for one in drawn]), np.ones((len(drawn), 1), np.int64))
        group = replace(outcomes_of((path,), pi), futures=(futures,))
        mean = mean + np.prod(chances) * credit(group, "vine")[0]
    np.testing.assert_allclose(mean, credit(outcomes_of((path,), pi), "vine")[0], atol=1e-12)


def test_the_value_of_a_state_counts_the_length_of_what_goes_on_from_it():
    group = replace(make_group([1.0], [[0.0, 0.0]]), futures=((np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[4, 3], [3, 2]])),))
    found = assign_credit(group, CreditConfig(kind="vine", length_threshold=2, length_penalty_on="resolved"), 4)
    np.testing.assert_allclose(found[0], [(0.5 + 1) / 2 - 0, 1 - 0.75])  # V: (1 - 1 + 0) / 2, (1 - 1/2 + 1) / 2; R_final 1


BIASED = {
    "episode": (1.0, 1.0),
    "episode_no_std": (1.0, 0.5),
    "ms_grpo": (1.0, 1.0),
    "ms_grpo, tests": (0.898, 1.067),
    "next_turn, tests": (-0.588, 1.322),
    "return_to_go, gamma .9": (0.999, 0.955),
    "turn_normalised, tests": (0.518, 0.722),
    "gigpo": (0.995, 1.819),
    "gigpo, tests": (0.869, 1.932),
    "mt_grpo, tests": (-0.091, 0.961),
    "potential, gamma .9": (0.999, 0.955),
}
"""Cosine and ratio with grad E[R] at G = 2, as in the docstrings."""


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if not claim.unbiased_for], ids=lambda claim: claim.name)
def test_the_bias_of_the_others_is_as_stated(claim):
    found = compare(expected_estimate(claim, 2), exact_gradient(lambda path: path.reward))
    assert found == pytest.approx(BIASED[claim.name], abs=6e-4)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_mean_centring_is_g_minus_one_over_g_of_the_gradient(size):
    claim = next(claim for claim in CLAIMS if claim.name == "episode_no_std")
    np.testing.assert_allclose(expected_estimate(claim, size), (size - 1) / size * exact_gradient(lambda p: p.reward), atol=1e-12)


def test_the_std_weighs_tasks_by_how_rare_their_outcomes_are():
    claim = CLAIMS[0]
    rare = LOGITS + np.array([0.0, -5.0]) * np.array([[[0.5]], [[1]], [[1]]])
    ratios = [compare(expected_estimate(claim, 4, at), exact_gradient(lambda p: p.reward, at)) for at in (LOGITS, rare)]
    assert ratios[0] == pytest.approx((1, 1.630), abs=1e-3) and ratios[1][0] == pytest.approx(1)
    assert success(rare) < 0.01 and ratios[1][1] > 1.7


def test_the_token_mean_is_a_ratio_estimator_and_its_bias_shrinks_with_the_group():
    claim, truth = next(claim for claim in CLAIMS if claim.name == "leave_one_out"), exact_gradient(lambda path: path.reward)
    errors = [np.linalg.norm(expected_estimate(claim, size, token_mean=True) - truth) for size in (2, 3, 4)]
    assert errors[0] > errors[1] > errors[2] > 1e-4


def test_per_turn_normalisation_charges_the_mean_reward_for_every_extra_turn():
    costs = [hidden_cost(size) for size in (2, 3, 4, 5)]
    assert all(mean == pytest.approx(0.20055, abs=1e-4) for _, mean in costs)
    np.testing.assert_allclose([cost for cost, _ in costs], [0.105, 0.175, 0.193, 0.199], atol=1e-3)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_baseline_by_turn_index_has_the_bias_of_its_closed_form(size):
    bias = expected_estimate(centred_by_index, size) - exact_gradient(sum_rewards)
    np.testing.assert_allclose(bias, predicted_bias(size), atol=1e-12)
    turns = exact_gradient(lambda path: len(path.states))
    assert -bias @ turns / (turns @ turns) == pytest.approx({2: 0.0943, 3: 0.1530, 4: 0.1896}[size], abs=1e-4)  # per extra turn


@pytest.mark.parametrize(
    ("name", "exact"), [("leave_one_out", (1, 1)), ("return_to_go", (1, 1)), ("potential", (0.990, 1.164)), ("vine", (0.998, 0.473))]
)
def test_dropping_constant_groups_biases_what_learns_from_them_and_filter_on_shaped_keeps_them(name, exact):
    claim, truth = next(claim for claim in CLAIMS if claim.name == name), exact_gradient(lambda path: path.reward)

    def filtered(filter_on):
        config = claim.credit.model_copy(update={"filter_on": filter_on})
        return lambda group: tuple(a_N * has_signal(group, config, OFF) for a_N in claim(group))

    assert compare(expected_estimate(filtered("shaped"), 2), truth) == pytest.approx((1, 1))
    found = compare(expected_estimate(filtered("outcome"), 2), truth)
    assert found == pytest.approx(exact, abs=6e-4)


def test_where_every_turn_earns_the_same_per_turn_normalisation_sees_nothing_at_all():
    # Every turn earns 1/10 whatever is done: grad E[sum r] = grad E[turns] / 10, and the estimate is 0: -1/10 per extra turn, exactly.
    tenth = lambda path: 0.1 * len(path.states)  # noqa: E731
    assert np.linalg.norm(exact_gradient(tenth)) > 0.01
    scheme = lambda group: assign_turns(group, 0.1)  # noqa: E731
    np.testing.assert_allclose(expected_estimate(scheme, 3), 0, atol=1e-9)


def assign_turns(group, earned):
    return turn_normalised(tuple(np.full(int(turns), earned) for turns in group.turns_G))


def test_the_mdp_is_deceptive():
    assert PHI[1] > PHI[0] > PHI[2]
    assert {path.states[-1] for path in PATHS if path.reward} == {2}
    assert outcomes_of((Path((0, 2), (1, 1), 1.0),), probabilities(LOGITS)).turns_G.tolist() == [2]


@pytest.mark.parametrize(
    ("name", "low", "high"), [("next_turn, tests", 0, 0.02), ("episode", 0.98, 1), ("ms_grpo", 0.98, 1), ("potential", 0.98, 1)]
)
def test_a_deceptive_next_turn_reward_is_followed_down_and_episode_credit_solves(name, low, high):
    # Exact expected gradients, no noise: 200 steps of 0.5 from E[R] = .33
    claim = next(claim for claim in CLAIMS if claim.name == name)
    assert success(LOGITS) == pytest.approx(0.329, abs=1e-3)
    assert low <= success(ascend(claim, 200, 0.5)) <= high


# --- episodes drawn by |A| ----------------------------------------------------------------------------------------


def expected_draw(advantages_E, tokens_E, draws, unbiased):
    """E over all draws of the token-mean gradient, one component per episode (each has its own direction)."""
    chances = np.abs(advantages_E) / np.abs(advantages_E).sum()
    total = np.zeros(len(advantages_E))
    for drawn in itertools.product(range(len(advantages_E)), repeat=draws):
        counts_E = np.bincount(drawn, minlength=len(advantages_E))
        factors_E = draw_factors(advantages_E, tokens_E, counts_E, unbiased=unbiased)
        got = tokens_E[factors_E > 0].sum()
        total += np.prod(chances[list(drawn)]) * factors_E * advantages_E * tokens_E / got if got else 0
    return total


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([-1.5, -0.5, 0.5, 1.0, 2.0]), st.integers(1, 90)), min_size=2, max_size=4),
    st.integers(1, 3),
)
def test_weighted_draws_have_the_whole_batch_s_expected_gradient(rows, draws):
    advantages_E, tokens_E = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    whole = advantages_E * tokens_E / tokens_E.sum()
    np.testing.assert_allclose(expected_draw(advantages_E, tokens_E, draws, True), whole, atol=1e-12)


def test_draws_without_the_weight_push_the_large_advantages():
    advantages_E, tokens_E = np.array([2.0, -0.5, -0.5, -1.0]), np.ones(4)
    found = expected_draw(advantages_E, tokens_E, 2, False)
    np.testing.assert_allclose(found, advantages_E * np.abs(advantages_E) / np.abs(advantages_E).sum(), atol=1e-12)


def test_draws_are_reproducible_and_follow_seed_and_step():
    sizes_E = np.array([1.0, -2.0, 0.0, 1.0])
    first = draw_counts(sizes_E, 40, (0, 7))
    assert first.sum() == 40 and first[2] == 0
    np.testing.assert_array_equal(first, draw_counts(sizes_E, 40, (0, 7)))
    assert any((draw_counts(sizes_E, 40, seed) != first).any() for seed in ((1, 7), (0, 8)))
    assert not draw_counts(np.zeros(3), 5, (0,)).any()


def test_a_drawn_batch_holds_each_drawn_episode_once_with_its_weight():
    groups_of_two = two_groups(True)
    whole = build_batch(groups_of_two, CreditConfig(), OFF)
    drawn = build_batch(groups_of_two, CreditConfig(draws=3), OFF)
    again = build_batch(groups_of_two, CreditConfig(draws=3), OFF)
    other = [build_batch(groups_of_two, CreditConfig(draws=3, draw_seed=seed), OFF) for seed in range(1, 6)]
    names = [sample.episode_id for sample in drawn.samples]
    assert len(set(names)) == len(names) <= 3 and set(names) <= {sample.episode_id for sample in whole.samples}
    for left, right in zip(drawn.samples, again.samples, strict=True):
        np.testing.assert_array_equal(left.advantages_T, right.advantages_T)
    assert any([s.episode_id for s in batch.samples] != names for batch in other)
    heavy = build_batch(groups_of_two, CreditConfig(draws=3, draw_weights="priority"), OFF)
    assert [s.episode_id for s in heavy.samples] == names
    assert any((left.advantages_T != right.advantages_T).any() for left, right in zip(heavy.samples, drawn.samples, strict=True))


def test_the_table_of_the_readme_is_printed_and_written(tmp_path):
    script = pathlib.Path(__file__).parent.parent / "scripts" / "bench" / "credit_bias.py"
    command = [sys.executable, str(script), "--quick", "--json", str(tmp_path / "bias.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads((tmp_path / "bias.json").read_text())
    assert set(found["bias"]) == {claim.name for claim in CLAIMS}
    assert found["bias"]["next_turn, tests"]["cos R, G=2"] == pytest.approx(-0.588, abs=1e-3)
    assert "| next_turn, tests | -0.588 | 1.322 |" in done.stdout
