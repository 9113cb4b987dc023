"""The other objectives: GSPO, CISPO, dual clip, correction, KL and entropy against plain formulas, and what each promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import weigh_samples
from pipeline.config import LossConfig
from pipeline.loss import Tokens, policy_loss
from pipeline.types import Sample

KINDS = ("dapo", "gspo", "cispo")


def tokens(old, advantages, engine=None, sequences=None, reference=None, weights=None):
    """Equal weights and one sequence unless told otherwise; float64, so that the formulas can be compared closely."""
    count = len(advantages)
    return Tokens(
        engine_M=wide(np.zeros(count) if engine is None else engine),
        old_M=None if old is None else wide(old),
        advantages_M=wide(advantages),
        weights_M=wide(np.full(count, 1 / count) if weights is None else weights),
        sequences_M=torch.tensor([0] * count if sequences is None else sequences),
        reference_M=None if reference is None else wide(reference),
    )


def wide(values):
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def outcome(logprobs, terms, config):
    """(loss, gradient by log-prob, stats); the entropy is a leaf of zeros."""
    logprobs_M = wide(logprobs).requires_grad_()
    loss, stats = policy_loss(logprobs_M, torch.zeros_like(logprobs_M, requires_grad=True), terms, config)
    return loss.item(), torch.autograd.grad(loss, logprobs_M)[0].numpy(), stats


# ------------------------------------------------------------------------------------------------ the plain formulas


def plain_correction(config, delta, sequences):
    """The weight of each token, by loops."""
    weights = []
    for own in sequences:
        same = [d for d, sequence in zip(delta, sequences, strict=True) if sequence == own]
        match config.correction_level:
            case "off":
                weights.append(1.0)
                continue
            case "token":
                weight = math.exp(delta[len(weights)])
            case "sequence":
                weight = math.exp(sum(same))
            case "geometric":
                weight = math.exp(sum(same) / len(same))
        if config.correction_mode == "truncate":
            weights.append(min(weight, config.correction_cap))
        else:
            weights.append(weight if config.correction_floor <= weight <= config.correction_cap else 0.0)
    return weights


def plain_loss(logprobs, terms, config):
    """(loss, gradient by log-prob): one token after the other, derivatives by hand."""
    old, engine, weights, advantages = (a.numpy() for a in (terms.old_M, terms.engine_M, terms.weights_M, terms.advantages_M))
    sequences, loss, gradient = terms.sequences_M.tolist(), 0.0, []
    corrections = plain_correction(config, old - engine, sequences)
    for k, (w, a, c) in enumerate(zip(weights, advantages, corrections, strict=True)):
        same = [j for j, sequence in enumerate(sequences) if sequence == sequences[k]]
        rho = math.exp(logprobs[k] - old[k])
        if config.kind == "gspo":
            rho = math.exp(sum(logprobs[j] - old[j] for j in same) / len(same))
        held = min(max(rho, 1 - config.eps_low), 1 + config.eps_high)
        if config.kind == "cispo":
            gain, slope = held * a * logprobs[k], held * a
        elif config.dual_clip is not None and a < 0 and min(rho * a, held * a) < config.dual_clip * a:
            gain, slope = config.dual_clip * a, 0.0
        elif held * a < rho * a:
            gain, slope = held * a, 0.0
        else:
            gain, slope = rho * a, rho * a
        loss -= w * c * gain
        gradient.append(-w * c * slope)
    return loss, np.array(gradient)


CONFIGS = [
    LossConfig(kind=kind, **dual, **correction)
    for kind in KINDS
    for dual in ({}, {"dual_clip": 1.5})
    for correction in (
        {},
        {"correction_level": "token"},
        {"correction_level": "sequence", "correction_cap": 3.0},
        {"correction_level": "geometric", "correction_mode": "mask", "correction_floor": 0.8, "correction_cap": 1.3},
        {"correction_level": "token", "correction_mode": "mask"},
    )
    if not (kind == "cispo" and dual)
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{c.dual_clip}-{c.correction_level}-{c.correction_mode}")
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
def test_every_objective_equals_its_formula_token_by_token(config, seed, count):
    rng = np.random.default_rng(seed)
    old, engine = -rng.random((2, count)) * 2
    logprobs = old + rng.normal(0, 0.5, count)
    sequences = np.sort(rng.integers(0, 3, count)).tolist()
    terms = tokens(old, rng.normal(size=count), engine, sequences, weights=rng.random(count))
    loss, gradient, _ = outcome(logprobs, terms, config)
    expected_loss, expected_gradient = plain_loss(logprobs, terms, config)
    assert loss == pytest.approx(expected_loss, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------ what each promises


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("old", ["none", "equal"])
def test_at_ratio_one_every_kind_has_the_gradient_of_reinforce(kind, old, dual_clip):
    config = LossConfig(kind=kind, dual_clip=None if kind == "cispo" else dual_clip)
    logprobs, advantages = [-0.3, -2.0, -1.0], np.array([1.0, -0.5, 2.0])
    _, gradient, stats = outcome(logprobs, tokens(None if old == "none" else logprobs, advantages, sequences=[0, 0, 1]), config)
    np.testing.assert_allclose(gradient, -advantages / 3)
    assert stats.ratio_max == 1 and stats.clip_low == stats.clip_high == stats.clip_dual == 0


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-2, 2)), min_size=1, max_size=8))
@settings(deadline=None)
def test_gspo_is_ppo_for_sequences_of_one_token(pairs):
    logprobs, advantages = (list(part) for part in zip(*pairs, strict=True))
    terms = tokens([0.0] * len(pairs), advantages, sequences=list(range(len(pairs))))
    gspo, dapo = outcome(logprobs, terms, LossConfig(kind="gspo")), outcome(logprobs, terms, LossConfig())
    assert gspo[0] == pytest.approx(dapo[0]) and gspo[2] == dapo[2]
    np.testing.assert_allclose(gspo[1], dapo[1])


def test_gspo_by_hand_one_ratio_for_the_sequence_which_is_clipped_as_a_whole():
    # sequence 0: log rho .4 and .0, s = exp(.2) = 1.2214 > 1.1; sequence 1: log rho .1, -.1, s = 1
    logprobs, terms = [0.4, 0.0, 0.1, -0.1], tokens([0.0] * 4, [1.0] * 4, sequences=[0, 0, 1, 1])
    loss, gradient, stats = outcome(logprobs, terms, LossConfig(kind="gspo", eps_high=0.1))
    assert loss == pytest.approx(-(1.1 + 1.1 + 1 + 1) / 4) and stats.clip_high == 0.5
    np.testing.assert_allclose(gradient, [0, 0, -0.25, -0.25])
    loss, gradient, _ = outcome(logprobs, terms, LossConfig(kind="gspo", eps_high=0.3))
    np.testing.assert_allclose(gradient, [-0.25 * math.exp(0.2)] * 2 + [-0.25] * 2)


def test_gspo_with_one_advantage_has_the_gradient_of_the_sequence_form():
    logprobs = wide([0.2, -0.1, 0.15]).requires_grad_()
    sequence_form = -torch.exp(logprobs.mean()) * 0.7  # one sequence, mean over its tokens: - s A
    expected = torch.autograd.grad(sequence_form, logprobs)[0].numpy()
    loss, gradient, _ = outcome([0.2, -0.1, 0.15], tokens([0.0] * 3, [0.7] * 3), LossConfig(kind="gspo"))
    assert loss == pytest.approx(sequence_form.item())
    np.testing.assert_allclose(gradient, expected)


def test_gspo_leaves_each_turn_its_own_advantage():
    _, gradient, _ = outcome([0.0, 0.0], tokens([0.0, 0.0], [1.0, -1.0]), LossConfig(kind="gspo"))
    np.testing.assert_allclose(gradient, [-0.5, 0.5])


def test_cispo_keeps_the_gradient_of_the_tokens_that_ppo_drops():
    logprobs, terms = [math.log(2), math.log(0.5)], tokens([0.0, 0.0], [1.0, -1.0])
    np.testing.assert_allclose(outcome(logprobs, terms, LossConfig())[1], [0, 0])
    _, gradient, stats = outcome(logprobs, terms, LossConfig(kind="cispo"))
    np.testing.assert_allclose(gradient, [-1.3 / 2, 0.8 / 2])
    assert stats.clip_low == stats.clip_high == 0.5
    np.testing.assert_allclose(outcome(logprobs, terms, LossConfig(kind="cispo", eps_low=1.0))[1], [-1.3 / 2, 0.5 / 2])


@pytest.mark.parametrize("kind", ["dapo", "gspo"])
def test_dual_clip_bounds_what_a_bad_token_with_a_large_ratio_may_cost(kind):
    logprobs, terms = [math.log(5)], tokens([0.0], [-2.0])
    assert outcome(logprobs, terms, LossConfig(kind=kind))[:2] == (pytest.approx(10.0), pytest.approx([10.0]))
    loss, gradient, stats = outcome(logprobs, terms, LossConfig(kind=kind, dual_clip=3.0))
    assert (loss, gradient, stats.clip_dual) == (pytest.approx(6.0), [0.0], 1.0)
    assert outcome(logprobs, tokens([0.0], [2.0]), LossConfig(kind=kind, dual_clip=3.0))[0] == pytest.approx(-2.6), "A > 0 is as before"
    inside = outcome([math.log(2)], terms, LossConfig(kind=kind, dual_clip=3.0))
    assert inside[:2] == (pytest.approx(4.0), pytest.approx([4.0])) and inside[2].clip_dual == 0


# ------------------------------------------------------------------------------------------------ importance correction

OLD, ENGINE, ROWS = np.log([1.0, 1.0, 1.0, 1.0]), np.log([0.5, 0.25, 1.0, 2.0]), [0, 0, 1, 1]  # w = 2, 4 | 1, .5


@pytest.mark.parametrize(
    ("level", "mode", "expected"),
    [
        ("off", "truncate", [1, 1, 1, 1]),
        ("token", "truncate", [2, 3, 1, 0.5]),
        ("token", "mask", [2, 0, 1, 0]),
        ("sequence", "truncate", [3, 3, 0.5, 0.5]),
        ("sequence", "mask", [0, 0, 0, 0]),
        ("geometric", "truncate", [8**0.5, 8**0.5, 0.5**0.5, 0.5**0.5]),
        ("geometric", "mask", [8**0.5, 8**0.5, 0.5**0.5, 0.5**0.5]),
    ],
)
def test_the_correction_by_hand_is_bounded_detached_and_counted(level, mode, expected):
    bounds = {} if level == "off" else {"correction_mode": mode, "correction_cap": 3.0}
    bounds |= {"correction_floor": 0.6} if mode == "mask" else {}
    loss, gradient, stats = outcome(OLD, tokens(OLD, [1.0] * 4, ENGINE, ROWS), LossConfig(correction_level=level, **bounds))
    np.testing.assert_allclose(gradient, -np.array(expected) / 4)
    assert loss == pytest.approx(-sum(expected) / 4) and stats.correction_mean == pytest.approx(sum(expected) / 4)
    raw = {"off": [1] * 4, "token": [2, 4, 1, 0.5], "sequence": [8, 8, 0.5, 0.5], "geometric": expected}[level]
    assert stats.correction_cut == pytest.approx(np.mean(np.abs(np.array(raw) - expected) > 1e-9))
    assert stats.delta_max == pytest.approx(math.log(4))


def test_geometric_does_not_depend_on_the_length_and_a_product_does():
    for length in (2, 400):
        terms = tokens([0.0] * length, [1.0] * length, [-0.01] * length)
        geometric = outcome([0.0] * length, terms, LossConfig(correction_level="geometric"))[2]
        product = outcome([0.0] * length, terms, LossConfig(correction_level="sequence", correction_cap=50.0))[2]
        assert geometric.correction_mean == pytest.approx(math.exp(0.01))
        assert product.correction_mean == pytest.approx(min(math.exp(0.01 * length), 50.0))


def test_decoupled_ppo_clips_against_the_learner_s_old_policy_and_weighs_by_the_engine_s():
    """Tokens of older weights: pi_engine is not pi_old. Coupled, the clip would hold a token that pi has not moved."""
    engine, old, new = [math.log(0.2)], [math.log(0.3)], [math.log(0.33)]
    decoupled = outcome(new, tokens(old, [1.0], engine), LossConfig(correction_level="token"))
    assert decoupled[:2] == (pytest.approx(-1.5 * 1.1), pytest.approx([-1.5 * 1.1]))
    coupled = outcome(new, tokens(engine, [1.0], engine), LossConfig(old_logprobs="engine"))
    assert coupled[:2] == (pytest.approx(-1.3), pytest.approx([0.0]))


# ------------------------------------------------------------------------------------------------ KL and entropy

LOGITS = np.array([0.3, -1.0, 0.8, 0.0, -0.4])
REFERENCE = np.array([-0.2, 0.5, 0.1, 0.9, -1.1])


def expected_kl(estimator, old_logits=None):
    """E under pi_old (default pi) of the estimate, and its expected gradient by the logits: every token once, weighted by its chance."""
    logits = wide(LOGITS).requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    old = (logprobs if old_logits is None else torch.log_softmax(wide(old_logits), -1)).detach()
    terms = Tokens(old, old, torch.zeros(5), old.exp(), torch.arange(5), torch.log_softmax(wide(REFERENCE), -1))
    loss, stats = policy_loss(logprobs, torch.zeros(5), terms, LossConfig(kl_coef=0.5, kl_estimator=estimator))
    assert loss.item() == pytest.approx(0.5 * stats.kl)
    return stats.kl, torch.autograd.grad(loss / 0.5, logits)[0].numpy()


def exact_kl(forward=False):
    """KL(pi || ref), or KL(ref || pi), and its gradient."""
    logits = wide(LOGITS).requires_grad_()
    first, second = torch.log_softmax(logits, -1), torch.log_softmax(wide(REFERENCE), -1)
    if forward:
        first, second = second, first
    value = (first.exp() * (first - second)).sum()
    return value.item(), torch.autograd.grad(value, logits)[0].numpy()


def test_k1_is_unbiased_in_value_and_gradient_on_policy_and_off():
    for old_logits in (None, np.array([0.5, -1.1, 1.1, 0.0, 0.1])):
        value, gradient = expected_kl("k1", old_logits)
        assert value == pytest.approx(exact_kl()[0])
        np.testing.assert_allclose(gradient, exact_kl()[1], atol=1e-12)


def test_k2_has_the_right_gradient_and_another_value():
    value, gradient = expected_kl("k2")
    np.testing.assert_allclose(gradient, exact_kl()[1], atol=1e-12)
    assert abs(value / exact_kl()[0] - 1) > 0.02


def test_k3_has_the_right_value_and_the_other_divergence_s_gradient():
    value, gradient = expected_kl("k3")
    assert value == pytest.approx(exact_kl()[0])
    np.testing.assert_allclose(gradient, exact_kl(forward=True)[1], atol=1e-12)
    assert np.abs(gradient - exact_kl()[1]).max() > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_policy_that_is_the_reference_has_no_kl_and_no_gradient_of_it(estimator):
    logprobs = [-0.5, -1.5]
    loss, gradient, stats = outcome(logprobs, tokens(None, [0.0, 0.0], reference=logprobs), LossConfig(kl_coef=2.0, kl_estimator=estimator))
    assert loss == 0 and stats.kl == 0 and not gradient.any()


def test_kl_is_absent_from_the_metrics_where_it_is_off_and_an_error_without_a_reference():
    assert outcome([0.0], tokens(None, [1.0]), LossConfig())[2].kl is None
    with pytest.raises(ValueError, match="reference model"):
        outcome([0.0], tokens(None, [1.0]), LossConfig(kl_coef=0.1))


def test_a_masked_token_still_pays_for_its_distance_from_the_reference():
    config = LossConfig(correction_level="token", correction_mode="mask", kl_coef=1.0, kl_estimator="k2")
    loss, gradient, _ = outcome([-1.0], tokens([-1.0], [1.0], engine=[-9.0], reference=[-1.5]), config)
    assert loss == pytest.approx(0.125) and gradient == pytest.approx([0.5])


def test_the_entropy_bonus_is_paid_by_weight_and_passes_its_gradient():
    entropy = wide([1.0, 3.0]).requires_grad_()
    logprobs = wide([-1.0, -2.0]).requires_grad_()
    terms = tokens(None, [0.0, 0.0], weights=[0.25, 0.75])
    loss, stats = policy_loss(logprobs, entropy, terms, LossConfig(entropy_coef=0.1))
    assert loss.item() == pytest.approx(-0.1 * (0.25 + 2.25)) and stats.entropy == pytest.approx(2.5)
    np.testing.assert_allclose(torch.autograd.grad(loss, entropy)[0].numpy(), [-0.025, -0.075])


def test_a_bonus_for_an_entropy_without_a_gradient_is_an_error():
    with pytest.raises(ValueError, match="entropy_grad"):
        policy_loss(wide([0.0]).requires_grad_(), wide([1.0]), tokens(None, [1.0]), LossConfig(entropy_coef=0.1))


# ------------------------------------------------------------------------------------------------ aggregation


def row(episode, group, sampled):
    mask_T = np.arange(sampled + 2) >= 2
    return Sample(episode, group, np.arange(sampled + 2), mask_T, np.zeros(sampled + 2, np.float32), mask_T.astype(np.float32))


def test_each_aggregation_by_hand():
    samples = [row("a", "g", 10), row("a", "g", 30), row("b", "g", 60), row("c", "h", 100)]  # "a": its history was rewritten once
    tokens_S = np.array([10, 30, 60, 100])
    np.testing.assert_allclose(weigh_samples(samples, "token") * tokens_S, [0.05, 0.15, 0.3, 0.5])
    np.testing.assert_allclose(weigh_samples(samples, "episode") * tokens_S, np.array([0.25, 0.75, 1, 1]) / 3)
    np.testing.assert_allclose(weigh_samples(samples, "group") * tokens_S, [0.05, 0.15, 0.3, 0.5])
    np.testing.assert_allclose(weigh_samples(samples, "constant", 50) * tokens_S, tokens_S / 150)
    uneven = [*samples[:3], row("c", "h", 300)]
    np.testing.assert_allclose(weigh_samples(uneven, "group") * [10, 30, 60, 300], [0.05, 0.15, 0.3, 0.5])
    np.testing.assert_allclose(weigh_samples(uneven, "token") * [10, 30, 60, 300], [0.025, 0.075, 0.15, 0.75])


# ------------------------------------------------------------------------------------------------ keys that nothing would read


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "cispo", "dual_clip": 3.0}, "loss.dual_clip = 3.0 is read only with loss.kind dapo or gspo"),
        ({"constant_tokens": 7}, "loss.constant_tokens = 7 is read only with loss.aggregation constant"),
        ({"correction_cap": 5.0}, "loss.correction_cap = 5.0 is read only with a loss.correction_level"),
        ({"correction_mode": "mask"}, "loss.correction_mode = 'mask' is read only with a loss.correction_level"),
        ({"correction_level": "token", "correction_floor": 0.1}, "is read only with loss.correction_mode mask"),
        ({"kl_estimator": "k3"}, "loss.kl_estimator = 'k3' is read only with loss.kl_coef > 0"),
        ({"correction_level": "token", "old_logprobs": "engine"}, "the weight is always 1"),
        ({"correction_level": "token", "correction_mode": "mask", "correction_cap": 0.4}, "must be below"),
    ],
)
def test_a_key_that_the_others_make_silent_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**keys)


def test_the_sequence_numbers_need_not_be_consecutive():
    terms = tokens([0.0] * 3, [1.0] * 3, sequences=[0, 0, 1])
    config, logprobs = LossConfig(kind="gspo"), [0.2, 0.1, -0.1]
    moved = replace(terms, sequences_M=torch.tensor([4, 4, 9]))
    assert outcome(logprobs, terms, config)[0] == outcome(logprobs, moved, config)[0]
