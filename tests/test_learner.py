"""The real DeepSpeed on the tiny model: splits and ZeRO stages agree, checkpoints resume, exports load, dead ranks speak."""

import os
import re
import signal
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import LearnerConfig, LossConfig, OptimConfig
from pipeline.convert import tiny_model
from pipeline.learner import DeepSpeedLearner
from pipeline.orders import LearnerSetup, learning_rate, split_minibatches
from pipeline.rank import obey
from pipeline.ranks import RankError, Ranks, Seat
from pipeline.rest import move_states
from pipeline.types import Batch, Sample
from pipeline.workshop import open_workshop

pytestmark = pytest.mark.deepspeed
LENGTHS = (30, 50, 20, 90, 64, 10, 33)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(model, tmp_path):
    """Starts a learner; those that a test leaves open are closed after it."""
    opened = []

    def begin(learner=None, optim=None, loss=None, model=model, **rest):
        setup = LearnerSetup(
            model,
            LearnerConfig(**{"micro_tokens": 4096, "head_chunk": 16, "zero_stage": 1} | (learner or {})),
            OptimConfig(**{"lr": 1e-3} | (optim or {})),
            loss or LossConfig(),
            tmp_path / f"logs{len(opened)}",
            **{"export_dtype": "float32", "start_seconds": 300, "command_seconds": 300} | rest,
        )
        opened.append(DeepSpeedLearner(setup))
        return opened[-1]

    yield begin
    for learner in opened:
        learner.close()


def sample(seed, length, advantage=None):
    rng = np.random.default_rng(seed)
    mask_T = rng.random(length) < 0.5
    mask_T[0], mask_T[-1] = False, True
    advantage = (-1) ** seed * (1 + seed) if advantage is None else advantage
    logprobs_T = (mask_T * -rng.normal(5.5, 0.2, length)).astype(np.float32)
    ids_T = rng.integers(0, 256, length)
    ids_T[: length // 3] = np.random.default_rng(seed % 2).integers(0, 256, length // 3)  # what a group shares
    return Sample(f"e{seed}", f"g{seed % 2}", ids_T, mask_T, logprobs_T, (mask_T * advantage).astype(np.float32))


SAMPLES = tuple(sample(seed, length) for seed, length in enumerate(LENGTHS))
BATCH = Batch(SAMPLES)


def naive_logprobs(model, row, temperature=1.0):
    import torch

    ids = torch.tensor(row.ids_T)[None]
    logits = model(ids).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]


def naive_steps(folder, samples, count):
    """(loss, gradient norm) of `count` steps by autograd from full logits and torch's AdamW: what every split has to equal."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    tokens = sum(int(s.mask_T.sum()) for s in samples)
    steps = []
    for _ in range(count):
        loss = torch.zeros(())
        for row in samples:
            mask = torch.tensor(row.mask_T)
            ratio = torch.exp(naive_logprobs(model, row)[mask[1:]] - torch.tensor(row.logprobs_T)[mask])
            advantage = torch.tensor(row.advantages_T)[mask]
            loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage).sum() / tokens
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return steps


CPU: dict[str, object] = {"offload_optimizer": "cpu"}
BETWEEN: dict[str, object] = {"offload_optimizer": "between_steps"}
SHARED: dict[str, object] = {"sequence_parallel": 2}
"""Two ranks that share their sequences (Ulysses)."""


@pytest.fixture(scope="module")
def expected_steps(model):
    return naive_steps(model, SAMPLES, 3)


@pytest.mark.parametrize(
    ("ranks", "stage", "micro_tokens", "checkpointing", "more"),
    [
        (1, 0, 4096, False, {}),
        (2, 0, 100, False, {}),
        (2, 1, 100, True, {}),
        (2, 2, 100, False, {}),
        (2, 3, 100, True, {}),
        (1, 1, 4096, False, CPU),
        pytest.param(2, 2, 100, False, CPU, marks=pytest.mark.long),
        (2, 3, 100, False, CPU),
        (2, 3, 100, False, BETWEEN),
        pytest.param(2, 1, 4096, False, SHARED, marks=pytest.mark.long),
        (2, 3, 100, True, SHARED),
        pytest.param(2, 0, 100, False, SHARED | {"share_prefixes": False}, marks=pytest.mark.long),
        pytest.param(2, 2, 100, True, SHARED | CPU, marks=pytest.mark.long),
        pytest.param(4, 3, 100, True, SHARED, marks=pytest.mark.long),
        pytest.param(4, 1, 100, True, {"sequence_parallel": 4}, marks=pytest.mark.long),  # more ranks than key heads
    ],
)
def test_u3_ranks_accumulation_and_zero_stage_change_no_loss_gradient_or_update(
    start, expected_steps, ranks, stage, micro_tokens, checkpointing, more
):
    config = {"ranks": ranks, "zero_stage": stage, "micro_tokens": micro_tokens, "activation_checkpointing": checkpointing}
    learner = start(config | more, loss=LossConfig(old_logprobs="engine"))
    for loss, norm in expected_steps:
        metrics = learner.step(BATCH)
        assert metrics["loss/loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert norm > 1, "clipping took part"
    if ranks == 1:
        assert metrics["optim/computed_tokens"] < sum(LENGTHS), "shared beginnings were computed once"


def serve_and_tell(seat: Seat, setup: LearnerSetup) -> None:
    """A rank that says, after a step, how many bytes of the optimiser rest."""
    shop = open_workshop(seat.spot, setup)
    seat.pipe.send("")
    seat.pipe.send(obey(shop, seat.pipe.recv()))
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in shop.model.parameters())
    seat.pipe.send((move_states(shop.engine, "cpu"), parameters))
    seat.pipe.recv()


def test_masters_and_both_moments_of_all_parameters_rest_between_steps(model, tmp_path):
    learner = LearnerConfig(ranks=2, zero_stage=3, dtype="bfloat16", offload_optimizer="between_steps")
    setup = LearnerSetup(model, learner, OptimConfig(), LossConfig(old_logprobs="engine"), tmp_path / "logs")
    crew = Ranks(serve_and_tell, setup, 2, setup.logs)
    DeepSpeedLearner(setup, crew).step(BATCH)
    told = crew.answers("what rests", 60)
    crew.close()
    padded = sum(moved for moved, _ in told) / (12 * told[0][1])
    assert 1 <= padded < 1.01, told


SIZES = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def windows(tmp_path):
    """A model with a sliding window."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layers = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True, "sliding_window": 8}
    Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, **layers)).save_pretrained(tmp_path / "windows")
    return tmp_path / "windows"


def test_a_model_that_cannot_share_is_computed_sample_by_sample_and_says_so(start, windows, caplog):
    learner = start({"micro_tokens": 100}, loss=LossConfig(old_logprobs="engine"), model=windows)
    assert "each sample is computed alone" in caplog.text and "sliding_attention" in caplog.text
    metrics = learner.step(BATCH)
    assert metrics["loss/loss"] == pytest.approx(naive_steps(windows, SAMPLES, 1)[0][0], rel=1e-5)
    assert metrics["optim/computed_tokens"] == sum(LENGTHS)


def test_sequences_of_a_model_that_cannot_attend_in_runs_are_not_shared_out(start, windows):
    """Ulysses drops masks: under plain SDPA packed samples would see each other, and a window would be none."""
    with pytest.raises(ValueError, match=r"learner\.sequence_parallel cannot share out this model: .*sliding_attention"):
        start({"ranks": 2} | SHARED, model=windows)
    assert not active_children()


@pytest.mark.parametrize(("ranks", "more"), [(1, {}), pytest.param(2, SHARED, marks=pytest.mark.long)])
def test_yarn_is_that_of_transformers_beyond_the_model_s_length_and_exports_do_not_stretch_twice(start, tmp_path, ranks, more):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "short")
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10_000.0}
    stretched = LlamaConfig(**sizes | {"max_position_embeddings": 128, "rope_parameters": rope})
    row = sample(3, 120)

    def expect(folder, **config):
        with torch.no_grad():
            return naive_logprobs(AutoModelForCausalLM.from_pretrained(folder, **config), row).numpy()

    learner = start({"ranks": ranks, **more}, model=tmp_path / "short", rope_yarn=4.0)
    (before,) = learner.logprobs([row])
    np.testing.assert_allclose(before[1:], expect(tmp_path / "short", config=stretched), atol=1e-5)
    assert np.abs(before[1:] - expect(tmp_path / "short")).max() > 0.1, "without it the positions are others"
    learner.step(Batch((row,)))
    learner.export(tmp_path / "out")
    (after,) = learner.logprobs([row])
    np.testing.assert_allclose(after[1:], expect(tmp_path / "out"), atol=1e-5)
    assert np.abs(after - before).max() > 1e-3
    (again,) = start({}, model=tmp_path / "out", rope_yarn=4.0).logprobs([row])
    np.testing.assert_allclose(again, after, atol=1e-5)


def naive_regularised_steps(folder, samples, count):
    """As naive_steps, for GSPO with one ratio a sample, KL (k2) to the first weights and an entropy bonus, no clip within reach."""
    import torch
    from transformers import AutoModelForCausalLM

    model, first = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    steps = []
    for _ in range(count):
        terms = []
        for row in samples:
            mask = torch.tensor(row.mask_T)
            logprobs = naive_logprobs(model, row)[mask[1:]]
            logits = torch.log_softmax(model(torch.tensor(row.ids_T)[None]).logits[0, :-1], -1)[mask[1:]]
            gap = logprobs - naive_logprobs(first, row)[mask[1:]].detach()
            ratio = torch.exp((logprobs - torch.tensor(row.logprobs_T)[mask]).mean())
            terms.append((-ratio * row.advantages_T[mask][0] + 0.5 * gap**2 / 2 + 0.2 * (logits.exp() * logits).sum(-1)).mean())
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return steps


@pytest.mark.parametrize(("ranks", "stage", "more"), [(1, 1, {}), (2, 3, {}), pytest.param(2, 1, SHARED, marks=pytest.mark.long)])
def test_gspo_with_kl_and_entropy_equals_autograd_from_full_logits(start, model, ranks, stage, more):
    loss = LossConfig(
        **{"kind": "gspo", "aggregation": "episode", "eps_low": 1.0, "eps_high": 9.0, "old_logprobs": "engine"},
        **{"kl_coef": 0.5, "kl_estimator": "k2", "entropy_coef": 0.2},
    )
    learner = start({"ranks": ranks, "zero_stage": stage, "micro_tokens": 100, **more}, {"weight_decay": 0.0}, loss)
    kl = []
    for expected, norm in naive_regularised_steps(model, SAMPLES, 3):
        metrics = learner.step(BATCH)
        kl.append(metrics["loss/kl"])
        assert metrics["loss/loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert kl[0] == pytest.approx(0, abs=1e-9) and kl[2] > kl[1] > 1e-6, "the reference stays while the weights move"


def test_one_step_raises_tokens_of_positive_advantage_lowers_negative_ones_and_is_on_policy(start):
    good, bad = sample(0, 40, advantage=1.0), sample(1, 40, advantage=-1.0)
    learner = start()
    before = learner.logprobs([good, bad])
    metrics = learner.step(Batch((good, bad)))
    after = learner.logprobs([good, bad])
    changes = [(new - old)[row.mask_T] for new, old, row in zip(after, before, (good, bad), strict=True)]
    assert changes[0].mean() > 0.01 and changes[1].mean() < -0.01
    assert metrics["optim/steps"] == 1
    assert metrics["loss/ratio_max"] == 1 and metrics["loss/clip_low"] == metrics["loss/clip_high"] == 0  # U5
    mismatch = np.concatenate([np.abs(old - row.logprobs_T)[row.mask_T] for old, row in zip(before, (good, bad), strict=True)])
    assert metrics["loss/delta_mean"] == pytest.approx(mismatch.mean(), rel=1e-4)
    gaps = np.concatenate([(old - row.logprobs_T)[row.mask_T] for old, row in zip(before, (good, bad), strict=True)])
    assert metrics["loss/delta_k3"] == pytest.approx((np.expm1(gaps) - gaps).mean(), rel=1e-4)
    listed = (Path(__file__).parent.parent / "docs" / "METRICS.md").read_text()
    assert set(metrics) == {
        name for name in re.findall(r"`((?:loss|optim|execution)/\w+)`", listed) if name not in ("loss/kl", "loss/directive")
    }


def test_fine_tuning_in_bfloat16_keeps_updates_that_only_fp32_masters_can_hold(start):
    learner = start({"dtype": "bfloat16"}, {"lr": 1e-5})
    losses = [learner.fine_tune(BATCH)["loss/loss"] for _ in range(12)]
    assert losses[0] == pytest.approx(np.log(259), abs=0.1)
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_a_killed_learner_goes_on_with_the_same_losses_from_its_checkpoint(start, tmp_path, ranks, stage):
    config = {"ranks": ranks, "zero_stage": stage, "micro_tokens": 200}
    optim = {"schedule": "cosine", "warmup_steps": 1, "batch_episodes": 4}
    learner = start(config, optim, total_steps=8)
    first = learner.step(BATCH)
    assert first["optim/steps"] == 2 and first["loss/ratio_max"] > 1.001, "the second minibatch is measured against pi_old"
    learner.save(tmp_path / "checkpoint")
    expected = [learner.step(BATCH) for _ in range(2)]
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RankError, match="SIGKILL"):
        learner.step(BATCH)
    resumed = start(config, optim, total_steps=8)
    resumed.restore(tmp_path / "checkpoint")
    assert resumed.steps == 2
    for before in expected:
        after = resumed.step(BATCH)
        assert after["loss/loss"] == pytest.approx(before["loss/loss"], rel=1e-6)
        assert after["optim/lr"] == before["optim/lr"]


@pytest.mark.parametrize(("ranks", "stage", "dtype"), [(1, 0, "float32"), (2, 3, "float32"), (1, 1, "bfloat16")])
def test_an_export_loads_in_transformers_with_the_learner_s_log_probs_and_tokenizer(start, model, tmp_path, ranks, stage, dtype):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner = start({"ranks": ranks, "zero_stage": stage, "dtype": dtype}, {"lr": 1e-2}, temperature=0.5)
    learner.step(BATCH)
    expected = learner.logprobs(SAMPLES)
    learner.export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype is torch.float32 and loaded.lm_head.weight is loaded.model.embed_tokens.weight
    loaded = loaded.to(getattr(torch, dtype))
    for row, logprobs_T in zip(SAMPLES, expected, strict=True):
        with torch.no_grad():
            naive = naive_logprobs(loaded, row, temperature=0.5)
        assert logprobs_T[0] == 0
        np.testing.assert_allclose(logprobs_T[1:], naive.numpy(), atol=1e-5 if dtype == "float32" else 0.1)
    text = "def f(x):\n    return x  # é"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    assert not (tmp_path / "out.partial").exists()


def test_a_caller_s_mistake_leaves_the_learner_alive_and_a_rank_s_failure_shows_its_own_traceback(start, tmp_path):
    learner = start({"ranks": 2})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        learner.restore(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no signal"):
        learner.step(Batch(()))
    broken = replace(SAMPLES[0], ids_T=SAMPLES[0].ids_T + 1000)  # ids outside the vocabulary
    with pytest.raises(RankError, match=r"(?s)rank \d of 2 died.*IndexError"):
        learner.step(Batch((broken, *SAMPLES[1:])))
    assert not active_children()


def test_a_setup_that_cannot_work_is_refused_before_a_rank_starts(start, tmp_path):
    with pytest.raises(ValueError, match="zero_stage"):
        start({"dtype": "bfloat16", "zero_stage": 0})
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        DeepSpeedLearner(LearnerSetup(tmp_path, LearnerConfig(), OptimConfig(), LossConfig(), tmp_path))
    assert not active_children()


def test_the_learning_rate_warms_up_then_stays_or_falls_to_zero():
    constant = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, constant, 0) for step in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = OptimConfig(lr=1.0, warmup_steps=2, schedule="cosine")
    assert [learning_rate(step, cosine, 12) for step in (0, 2, 7, 12, 20)] == pytest.approx([0.5, 1.0, 0.5, 0.0, 0.0])


def test_minibatches_cover_all_samples_once_are_alike_in_size_and_keep_groups_together():
    groups = [f"g{number % 26}" for number in range(130)]
    parts = split_minibatches(groups, 64, (0, 3))
    assert sorted(index for part in parts for index in part) == list(range(130))
    assert [len(part) for part in parts] == [44, 43, 43]
    assert parts != split_minibatches(groups, 64, (0, 4)) and parts == split_minibatches(groups, 64, (0, 3))
    assert sum(len({groups[index] for index in part}) for part in parts) <= 26 + 2, "a group is cut only where a part ends"
