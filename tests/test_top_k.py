"""The top-K form of the directive part: the head's many targets, the divergence, and one step of the real DeepSpeed with a teacher."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import LearnerConfig, LossConfig, OptimConfig
from pipeline.convert import tiny_model
from pipeline.head import Scoring, find_likeliest, score_tokens
from pipeline.learner import DeepSpeedLearner
from pipeline.loss import reverse_kl, teacher_loss
from pipeline.orders import LearnerSetup
from pipeline.packs import Room, pack_samples
from pipeline.types import Batch, Sample, Teacher

VOCAB, HIDDEN, K = 23, 8, 5


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.double(), -1)


# ------------------------------------------------------------------------------------------------ the head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_many_targets_of_a_token_equal_the_naive_ones_in_value_and_gradient_even_the_same_one_twice(chunk: int, temperature: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    targets, upstream = torch.randint(VOCAB, (10, 4)), torch.randn(10, 4)
    targets[:, 3] = targets[:, 0]
    logprobs, entropy = score_tokens(hidden, weight, targets, Scoring(chunk, temperature))
    expected = torch.log_softmax(hidden @ weight.t() / temperature, -1).gather(-1, targets)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))
    for left, right in zip(got, torch.autograd.grad((expected * upstream).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    alone, alike = score_tokens(hidden, weight, targets[:, 0], Scoring(chunk, temperature))
    assert torch.equal(alone, logprobs[:, 0]) and torch.equal(alike, entropy)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(("tokens", "count"), [(10, K), (10, VOCAB + 7), (0, K)])
def test_the_likeliest_are_those_of_the_whole_distribution_and_never_more_than_it_has(chunk: int, tokens: int, count: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN)
    logprobs, ids = find_likeliest(hidden, weight, count, Scoring(chunk, 0.7))
    expected = torch.log_softmax(hidden @ weight.t() / 0.7, -1).topk(min(count, VOCAB))
    torch.testing.assert_close(logprobs, expected.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, expected.indices) and not logprobs.requires_grad


# ------------------------------------------------------------------------------------------------ the divergence


def pair(seed: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 50, 11, generator=generator) * scale
    return student.requires_grad_(), teacher


def bins(logits: torch.Tensor, of: torch.Tensor, count: int) -> torch.Tensor:
    """log p of the `count` tokens that `of` holds likeliest."""
    return torch.log_softmax(logits, -1).gather(-1, of.topk(count).indices)


def test_at_k_of_the_vocabulary_the_divergence_is_exact_and_below_it_a_lower_bound() -> None:
    student, teacher = pair(0)
    exact_H = (log_softmax(student).exp() * (log_softmax(student) - log_softmax(teacher))).sum(-1)
    found = [reverse_kl(bins(student, teacher, k), bins(teacher, teacher, k)) for k in (1, 4, 8, 11)]
    torch.testing.assert_close(found[-1].double(), exact_H, rtol=1e-5, atol=1e-5)
    assert bool((found[0] > -1e-6).all()) and all(bool((less <= more + 1e-5).all()) for less, more in pairwise(found))
    assert not reverse_kl(bins(teacher, teacher, 3), bins(teacher, teacher, 3)).any()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 30.0), count=st.integers(1, 11))
def test_the_divergence_and_its_gradient_are_finite_and_not_negative_however_sure_both_are(seed: int, scale: float, count: int) -> None:
    student, teacher = pair(seed, scale)
    found_H = reverse_kl(bins(student, teacher, count), bins(teacher, teacher, count))
    (gradient,) = torch.autograd.grad(found_H.sum(), student)
    assert bool((found_H > -1e-4).all()) and bool(torch.isfinite(gradient).all())


def test_the_gradient_at_k_of_the_vocabulary_is_the_expectation_of_the_sampled_form_s() -> None:
    """d/dz of -A log pi(a), A = log pi_teacher(a) - log pi(a) held fixed, over all a weighted by pi(a)."""
    student, teacher = pair(1)
    weights_H = torch.linspace(0.1, 2.0, 50)
    loss = teacher_loss(bins(student, teacher, 11), bins(teacher, teacher, 11), weights_H)
    (got,) = torch.autograd.grad(loss, student)
    logp = torch.log_softmax(student, -1)
    advantages = (torch.log_softmax(teacher, -1) - logp).detach()
    sampled = -(weights_H[:, None] * logp.detach().exp() * advantages * logp).sum()
    (expected,) = torch.autograd.grad(sampled, student)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ packs


def sample(seed: int, length: int, vocab: int = VOCAB, taught: bool = True, weight: float = 0.5) -> Sample:
    rng = np.random.default_rng(seed)
    mask_T = rng.random(length) < 0.5
    mask_T[0], mask_T[-1] = False, True
    ids_T = rng.integers(0, vocab, length)
    ids_T[: length // 3] = np.random.default_rng(seed % 2).integers(0, vocab, length // 3)  # what a group shares
    places_H = np.flatnonzero(mask_T)[::2]
    logprobs_HK = np.log(np.sort(rng.dirichlet(np.ones(K + 3), len(places_H)), axis=1)[:, ::-1][:, :K]).astype(np.float32)
    ids_HK = np.stack([rng.permutation(vocab)[:K] for _ in places_H])
    teacher = Teacher(places_H, ids_HK, logprobs_HK, np.full(len(places_H), weight, np.float32))
    zeros = np.zeros(length, np.float32)
    advantages_T = (mask_T * (-1.0) ** seed).astype(np.float32)
    return Sample(f"e{seed}", f"g{seed % 2}", ids_T, mask_T, zeros, advantages_T, teacher=teacher if taught else None)


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(8, 200), ranks=st.integers(1, 4), share=st.booleans())
def test_a_teacher_stays_with_its_tokens_whatever_the_packs(tokens: int, ranks: int, share: bool) -> None:
    samples = [sample(seed, length, taught=seed != 2) for seed, length in enumerate([5, 30, 12, 19, 26, 9])]
    weights_S = np.linspace(0.1, 0.6, len(samples)).astype(np.float32)
    found = {}
    for pack in (pack for packs in pack_samples(samples, Room(tokens, ranks, share), weights_S) for pack in packs):
        assert pack.teacher is None or pack.rows != (-1,)
        told = [] if pack.teacher is None else [getattr(pack.teacher, name) for name in Teacher.__slots__]
        for place, ids, logprobs, weight in zip(*told, strict=True):
            found[pack.rows[pack.sequences_M[place]], int(pack.tokens_M[place])] = (tuple(ids), tuple(logprobs), weight)
    expected = {
        (row, int(place)): (tuple(ids), tuple(logprobs), np.float32(0.5) * weights_S[row])
        for row, one in enumerate(samples)
        if (told := one.teacher) is not None
        for place, ids, logprobs in zip(told.places_H, told.ids_HK, told.logprobs_HK, strict=True)
    }
    assert found == expected


# ------------------------------------------------------------------------------------------------ the learner


SAMPLES = tuple(sample(seed, length, vocab=256, taught=seed != 2) for seed, length in enumerate((30, 50, 20, 90, 64, 10, 33)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def expected_step(folder: Path, samples: tuple[Sample, ...]) -> tuple[float, float, float]:
    """(loss, the teacher's part, gradient norm) by autograd from full logits; on-policy, so the gain's value is the advantage."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = sum(int(one.mask_T.sum()) for one in samples)
    gain, directive = torch.zeros(()), torch.zeros(())
    for one in samples:
        logp = torch.log_softmax(model(torch.tensor(one.ids_T)[None]).logits[0, :-1].float(), -1)
        sampled = logp.gather(-1, torch.tensor(one.ids_T)[1:, None])[:, 0]
        ratio = torch.exp(sampled - sampled.detach())
        gain = gain + (ratio * torch.tensor(one.advantages_T * one.mask_T)[1:]).sum() / tokens
        if (told := one.teacher) is not None:
            student = logp[told.places_H - 1].gather(-1, torch.tensor(told.ids_HK))
            rest = [torch.log(1 - part.exp().sum(-1, keepdim=True)) for part in (student, torch.tensor(told.logprobs_HK))]
            both = [torch.cat(pair, -1) for pair in zip((student, torch.tensor(told.logprobs_HK)), rest, strict=True)]
            directive = directive + 0.5 * (both[0].exp() * (both[0] - both[1])).sum() / tokens
    (directive - gain).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    return (directive - gain).item(), directive.item(), norm.item()


@pytest.fixture(scope="module")
def expected(model: Path) -> tuple[float, float, float]:
    return expected_step(model, SAMPLES)


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("ranks", "stage", "micro_tokens", "sharers"), [(1, 1, 4096, 1), (2, 3, 100, 1), pytest.param(2, 3, 100, 2, id="ulysses")]
)
def test_a_step_with_a_teacher_equals_autograd_from_full_logits(
    model: Path, expected: tuple[float, float, float], tmp_path: Path, ranks: int, stage: int, micro_tokens: int, sharers: int
) -> None:
    keys = {"ranks": ranks, "zero_stage": stage, "micro_tokens": micro_tokens, "head_chunk": 16, "sequence_parallel": sharers}
    setup = LearnerSetup(model, LearnerConfig.model_validate(keys), OptimConfig(lr=1e-3), LossConfig(), tmp_path, start_seconds=300)
    learner = DeepSpeedLearner(setup)
    try:
        check_likeliest(model, learner)
        metrics = learner.step(Batch(SAMPLES))
        quiet = learner.step(Batch(tuple(replace(one, teacher=None) for one in SAMPLES)))
    finally:
        learner.close()
    found = [metrics[name] for name in ("loss/loss", "loss/directive", "optim/grad_norm")]
    assert found == pytest.approx(expected, rel=2e-5)
    assert expected[1] > 0.05 and "loss/directive" not in quiet


def check_likeliest(folder: Path, learner: DeepSpeedLearner) -> None:
    """Those of transformers, in the order of the samples and of their tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for one, found in zip(SAMPLES, learner.likeliest(SAMPLES, K), strict=True):
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor(one.ids_T)[None]).logits[0, :-1].float(), -1)
        top = logp[np.flatnonzero(one.mask_T) - 1].topk(K)
        np.testing.assert_allclose(found.logprobs_HK, top.values.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(np.sort(found.ids_HK), np.sort(top.indices.numpy()))
