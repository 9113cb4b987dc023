"""The objective and the chunked head: U1-U5 and equality with the naive form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import weigh_samples
from pipeline.config import LossConfig
from pipeline.head import Scoring, ScoringHead, score_tokens
from pipeline.loss import Tokens, policy_loss, sft_loss
from pipeline.orders import LossStats, merge_stats
from pipeline.packs import FixedLogprobs, Room, pack_samples
from pipeline.types import Sample

CONFIG = LossConfig(eps_low=0.2, eps_high=0.3)
VOCAB, HIDDEN = 37, 8


def tokens(old, advantages, weights=None, engine=None):
    old_M = torch.tensor(old, dtype=torch.float32)
    count = len(old)
    return Tokens(
        engine_M=old_M.clone() if engine is None else torch.tensor(engine),
        old_M=old_M,
        advantages_M=torch.tensor(advantages, dtype=torch.float32),
        weights_M=torch.full((count,), 1 / count) if weights is None else torch.tensor(weights),
        sequences_M=torch.zeros(count, dtype=torch.int64),
    )


def gradient(ratio, advantage):
    logprobs = torch.tensor([-1.0], requires_grad=True)
    terms = tokens([-1.0 - float(np.log(ratio))], [advantage])
    policy_loss(logprobs, torch.zeros(1), terms, CONFIG)[0].backward()
    return logprobs.grad.item()


def test_u4_the_clip_is_asymmetric():
    assert gradient(1.31, 1.0) == 0 and gradient(1.29, 1.0) < 0
    assert gradient(0.5, 1.0) == pytest.approx(-0.5)
    assert gradient(0.79, -1.0) == 0 and gradient(0.81, -1.0) > 0
    assert gradient(2.0, -1.0) == pytest.approx(2.0)


def test_clip_fractions_count_what_was_clipped():
    logprobs = torch.log(torch.tensor([1.4, 0.7, 1.4, 0.7, 1.0, 1.0, 1.0, 1.0]))
    stats = policy_loss(logprobs, torch.zeros(8), tokens([0.0] * 8, [1, 1, -1, -1, 1, 1, -1, -1]), CONFIG)[1]
    assert stats.clip_high == pytest.approx(1 / 8) and stats.clip_low == pytest.approx(1 / 8)
    assert stats.ratio_max == pytest.approx(1.4) and stats.ratio_mean == pytest.approx((2.8 + 1.4 + 4) / 8)


def test_u5_on_policy_the_ratio_is_one_and_the_gradient_that_of_reinforce():
    logprobs = torch.tensor([-0.3, -2.0, -1.0], requires_grad=True)
    advantages = torch.tensor([1.0, -0.5, 2.0])
    terms = Tokens(torch.zeros(3), None, advantages, torch.full((3,), 1 / 3), torch.zeros(3, dtype=torch.int64))
    loss, stats = policy_loss(logprobs, torch.zeros(3), terms, CONFIG)
    loss.backward()
    assert stats.ratio_mean == pytest.approx(1) and stats.ratio_max == 1 and stats.clip_low == stats.clip_high == 0
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_u2_long_and_short_episodes_share_the_gradient_by_tokens():
    samples = [sample_of(length + 1, 1.0, seed) for seed, length in enumerate((10, 990))]
    weights_S = weigh_samples(samples, "token")
    logprobs = [torch.zeros(int(s.mask_T.sum()), requires_grad=True) for s in samples]
    for lp, sample, weight in zip(logprobs, samples, weights_S, strict=True):
        count = len(lp)
        advantages_M = torch.tensor(sample.advantages_T[sample.mask_T])
        terms = Tokens(torch.zeros(count), None, advantages_M, torch.full((count,), float(weight)), torch.zeros(count, dtype=torch.int64))
        policy_loss(lp, torch.zeros(count), terms, CONFIG)[0].backward()
    shares = [-lp.grad.sum().item() for lp in logprobs]
    assert shares == pytest.approx([0.01, 0.99], rel=1e-5)


def test_rows_of_weight_zero_leave_no_trace_in_the_metrics():
    terms = tokens([0.0, -9.0], [1.0, 1.0], weights=[1.0, 0.0], engine=[0.0, 0.0])
    stats = policy_loss(torch.zeros(2), torch.ones(2), terms, CONFIG)[1]
    assert stats == LossStats(loss=-1, ratio_mean=1, correction_mean=1, entropy=1, execution=1, ratio_max=1)


def naive_scores(hidden, weight, targets, temperature):
    logits = hidden.double() @ weight.double().T / temperature
    log_softmax = torch.log_softmax(logits, -1)
    return log_softmax.gather(-1, targets[:, None]).squeeze(-1), -(log_softmax.exp() * log_softmax).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_chunked_head_equals_the_naive_one_in_value_and_gradient(chunk, temperature):
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    targets, upstream = torch.randint(VOCAB, (10,)), torch.randn(10)
    logprobs, entropy = score_tokens(hidden, weight, targets, Scoring(chunk, temperature))
    (logprobs * upstream).sum().backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected, expected_entropy = naive_scores(hidden, weight, targets, temperature)
    (expected * upstream).sum().backward()
    torch.testing.assert_close(logprobs, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[0], hidden.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1], weight.grad, rtol=1e-5, atol=1e-5)
    assert not entropy.requires_grad


@pytest.mark.parametrize("upstream_of", ["both", "entropy"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_chunked_head_gives_the_entropy_its_naive_gradient_where_asked(chunk, upstream_of):
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    targets, upstream = torch.randint(VOCAB, (10,)), torch.randn(2, 10)
    if upstream_of == "entropy":
        upstream[0] = 0
    scores = score_tokens(hidden, weight, targets, Scoring(chunk, 0.7, entropy_grad=True))
    given = [
        pair for pair, name in zip(zip(scores, upstream, strict=True), ("both", "entropy"), strict=True) if upstream_of in ("both", name)
    ]
    got = torch.autograd.grad(sum((score * up).sum() for score, up in given), (hidden, weight))
    naive = naive_scores(hidden, weight, targets, 0.7)
    expected = torch.autograd.grad(sum((score * up).sum() for score, up in zip(naive, upstream, strict=True)), (hidden, weight))
    for left, right in zip(got, expected, strict=True):
        assert right.abs().max() > 0.1
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


class TiedToy(torch.nn.Module):
    """Embedding -> causal mean -> the same embedding as head: the smallest model with tied weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(VOCAB, HIDDEN) / 2)
        self.head = ScoringHead(self.weight, Scoring(chunk=4, entropy_grad=True))

    def forward(self, micro):
        """Each token sees the mean over its own past, run by run."""
        embedded = torch.nn.functional.embedding(torch.tensor(micro.ids_N), self.weight)
        parts = []
        for run in micro.runs:
            seen = torch.cat([embedded[start:stop] for start, stop in (*run.past, (run.start, run.stop))])
            means = seen.cumsum(0) / torch.arange(1, len(seen) + 1)[:, None]
            parts.append(means[len(seen) - (run.stop - run.start) :])
        return self.head(torch.cat(parts)[torch.tensor(micro.sources_M)], torch.tensor(micro.targets_M), 1.0)


def sample_of(length, advantage, seed):
    rng = np.random.default_rng(seed)
    mask_T = np.ones(length, dtype=bool) if length > 30 else rng.random(length) < 0.6
    mask_T[:1], mask_T[-1] = False, True
    if length in (11, 991):
        mask_T[1:] = True
    ids_T = rng.integers(0, VOCAB, length)
    ids_T[: length // 2] = np.random.default_rng(seed % 3).integers(0, VOCAB, length // 2)  # what a group shares
    return Sample(
        f"e{seed % 5}", f"g{seed % 3}", ids_T, mask_T, -rng.random(length, dtype=np.float32), (mask_T * advantage).astype(np.float32)
    )


def run(samples, room, config):
    model, stats = TiedToy(), []
    weights_S = weigh_samples(samples, config.aggregation, config.constant_tokens)
    rng = np.random.default_rng(9)
    fixed = FixedLogprobs(*([-rng.random(len(s.ids_T), dtype=np.float32) * 4 for s in samples] for _ in range(2)))
    for packs in pack_samples(samples, room, weights_S, fixed):
        for micro in packs:
            logprobs, entropy = model(micro)
            known = (micro.engine_M, micro.old_M, micro.advantages_M, micro.weights_M, micro.sequences_M, micro.reference_M)
            loss, part = policy_loss(logprobs, entropy, Tokens(*map(torch.tensor, known)), config)
            loss.backward()
            stats.append(part)
    return merge_stats(stats), model.weight.grad


SPLIT = [
    LossConfig(),
    LossConfig(aggregation="group"),
    LossConfig(aggregation="episode", kind="gspo", dual_clip=3.0, correction_level="geometric", kl_coef=0.1, kl_estimator="k3"),
    LossConfig(
        **{"aggregation": "constant", "constant_tokens": 8, "kind": "cispo"},
        **{"correction_level": "sequence", "correction_mode": "mask", "correction_floor": 1e-6, "correction_cap": 50.0},
    ),
    LossConfig(correction_level="token", kl_coef=0.2, entropy_coef=0.3),
]


@pytest.mark.parametrize("config", SPLIT, ids=lambda config: f"{config.kind}-{config.aggregation}-{config.correction_level}")
@settings(deadline=None, max_examples=20)
@given(micro_tokens=st.integers(8, 200), ranks=st.integers(1, 4), share=st.booleans())
def test_u3_any_split_gives_the_same_loss_gradient_and_metrics(config, micro_tokens, ranks, share):
    samples = [sample_of(length, (-1) ** seed * (1 + seed), seed) for seed, length in enumerate([5, 30, 12, 19, 26, 3, 9])]
    whole_stats, whole_grad = run(samples, Room(10_000, share=False), config)
    stats, grad = run(samples, Room(micro_tokens, ranks, share), config)
    assert whole_grad.abs().max() > 1e-3
    torch.testing.assert_close(grad, whole_grad, rtol=1e-5, atol=1e-6)
    assert (stats.kl is None) == (whole_stats.kl is None) == (config.kl_coef == 0)
    for name in [name for name in LossStats.__slots__ if getattr(stats, name) is not None]:
        assert getattr(stats, name) == pytest.approx(getattr(whole_stats, name), rel=1e-5, abs=1e-6)


def test_u1_what_is_not_sampled_leaves_loss_and_gradient_bit_identical():
    torch.manual_seed(2)
    mask = torch.tensor([[False, True, True, False, False, True], [False, False, True, False, True, False]])
    ids = torch.randint(VOCAB, mask.shape)
    head = ScoringHead(torch.nn.Parameter(torch.randn(VOCAB, HIDDEN)), Scoring(chunk=2))

    def outcome(noise, other_ids):
        hidden = torch.randn(2, 6, HIDDEN, generator=torch.Generator().manual_seed(3))
        feeds = torch.cat([mask[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)  # position t - 1 predicts token t
        hidden = (hidden + noise * ~feeds[..., None]).requires_grad_()
        chosen_ids = torch.where(mask, ids, other_ids)
        logprobs, entropy = head(hidden[:, :-1][mask[:, 1:]], chosen_ids[mask], 1.0)
        count = int(mask.sum())
        weights_M, rows_M = torch.full((count,), 1 / count), mask.nonzero()[:, 0]
        terms = Tokens(torch.zeros(count), torch.full((count,), -3.0), torch.linspace(-1, 1, count), weights_M, rows_M)
        loss, stats = policy_loss(logprobs, entropy, terms, CONFIG)
        head.weight.grad = None
        loss.backward()
        return loss.item(), stats, head.weight.grad.clone(), hidden.grad.clone()

    plain, perturbed = outcome(0.0, ids), outcome(7.0, ids.flip(1))
    assert plain[:2] == perturbed[:2]
    assert torch.equal(plain[2], perturbed[2]) and torch.equal(plain[3], perturbed[3])


def test_fine_tuning_is_cross_entropy_over_the_scored_tokens():
    logits = torch.randn(6, VOCAB, requires_grad=True)
    targets = torch.arange(6)
    logprobs = torch.log_softmax(logits, -1).gather(-1, targets[:, None]).squeeze(-1)
    terms = Tokens(torch.zeros(6), None, torch.ones(6), torch.full((6,), 1 / 6), torch.zeros(6, dtype=torch.int64))
    loss, stats = sft_loss(logprobs, torch.zeros(6), terms)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))
    assert stats.loss == pytest.approx(loss.item())
