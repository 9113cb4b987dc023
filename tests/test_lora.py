"""Adapters under the real DeepSpeed, on the tiny model: as peft and plain autograd compute them, exported merged, saved alone."""

import numpy as np
import pytest
import torch

from pipeline.config import LearnerConfig, LoraConfig, LossConfig, OptimConfig
from pipeline.convert import tiny_model
from pipeline.learner import DeepSpeedLearner
from pipeline.lora import add_adapters, merge, whole_weights, without_adapters
from pipeline.orders import LearnerSetup
from tests.test_learner import BATCH, SAMPLES, naive_logprobs

LORA = LoraConfig(rank=4, alpha=24.0, targets=("q_proj", "v_proj", "down_proj"))
LOSS = LossConfig(old_logprobs="engine", kl_coef=0.5, kl_estimator="k2", eps_low=1.0, eps_high=9.0, aggregation="token")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(model, tmp_path):
    """Starts a learner of adapters; closed after the test."""
    opened = []

    def begin(lora=LORA, **learner):
        config = LearnerConfig(**{"micro_tokens": 200, "head_chunk": 64, "lora": lora, "seed": 3} | learner)
        optim, logs = OptimConfig(lr=1e-2, grad_clip=1e9), tmp_path / f"logs{len(opened)}"
        opened.append(DeepSpeedLearner(LearnerSetup(model, config, optim, LOSS, logs, export_dtype="float32", start_seconds=300)))
        return opened[-1]

    yield begin
    for learner in opened:
        learner.close()


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def naive_steps(folder, count):
    """(loss, gradient norm) of `count` steps by peft, autograd from full logits and torch's AdamW; the reference is a second model."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    base, first = load(folder), load(folder)
    torch.manual_seed(3)
    model = get_peft_model(base, PeftConfig(r=4, lora_alpha=24, target_modules=["q_proj", "v_proj", "down_proj"]))
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-2, weight_decay=OptimConfig().weight_decay)
    tokens = sum(int(row.mask_T.sum()) for row in SAMPLES)
    steps = []
    for _ in range(count):
        loss = torch.zeros(())
        for row in SAMPLES:
            mask = torch.tensor(row.mask_T)
            logprobs = naive_logprobs(model, row)[mask[1:]]
            gap = logprobs - naive_logprobs(first, row)[mask[1:]].detach()
            ratio = torch.exp(logprobs - torch.tensor(row.logprobs_T)[mask])
            loss = loss + (-ratio * torch.tensor(row.advantages_T)[mask] + 0.5 * gap**2 / 2).sum() / tokens
        optimizer.zero_grad()
        loss.backward()
        steps.append((loss.item(), torch.stack([parameter.grad.norm() for parameter in adapters]).norm().item()))
        optimizer.step()
    return steps


@pytest.fixture(scope="module")
def expected_steps(model):
    return naive_steps(model, 3)


@pytest.mark.deepspeed
@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_adapters_learn_as_under_peft_and_autograd_and_leave_as_merged_weights(start, model, tmp_path, expected_steps, ranks, stage):
    learner = start(ranks=ranks, zero_stage=stage)
    kl = []
    for loss, norm in expected_steps:
        metrics = learner.step(BATCH)
        kl.append(metrics["loss/kl"])
        assert metrics["loss/loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert kl[0] == pytest.approx(0, abs=1e-9) and kl[2] > kl[1] > 1e-6, "the reference stays while the adapters move"
    learner.export(tmp_path / "out")
    whole, before = load(tmp_path / "out"), load(model)
    for row, logprobs_T in zip(SAMPLES, learner.logprobs(SAMPLES), strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(logprobs_T[1:], naive_logprobs(whole, row).numpy(), atol=1e-5)
    moved = {name.split(".")[-2] for name, weight in whole.state_dict().items() if not torch.equal(weight, before.state_dict()[name])}
    assert moved == set(LORA.targets)


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("ranks", "stage", "later"), [pytest.param(1, 1, 1, marks=pytest.mark.long), pytest.param(2, 3, 2, marks=pytest.mark.long), (2, 3, 1)]
)
def test_a_checkpoint_of_adapters_alone_goes_on_with_the_same_losses(start, tmp_path, ranks, stage, later):
    learner = start(ranks=ranks, zero_stage=stage)
    learner.step(BATCH)
    learner.save(tmp_path / "checkpoint")
    for file in (tmp_path / "checkpoint").rglob("*model_states.pt"):
        assert not [name for name in torch.load(file, weights_only=False)["module"] if "lora_" not in name]
    expected = [learner.step(BATCH)["loss/loss"] for _ in range(2)]
    resumed = start(ranks=later, zero_stage=stage)
    resumed.restore(tmp_path / "checkpoint")
    assert resumed.steps == 1
    assert [resumed.step(BATCH)["loss/loss"] for _ in range(2)] == pytest.approx(expected, rel=1e-5)


def test_a_merged_weight_is_exactly_w_plus_scale_b_a_and_keeps_its_name(model):
    whole, adapted = load(model), load(model)
    add_adapters(adapted, LORA, seed=0)
    layer = adapted.model.layers[1].mlp.down_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    merged = {name: merge(parts, scale) for name, parts, scale in whole_weights(adapted)}
    assert merged.keys() == dict(whole.named_parameters()).keys()
    delta = 24 / 4 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
    assert torch.equal(merged.pop("model.layers.1.mlp.down_proj.weight"), whole.model.layers[1].mlp.down_proj.weight + delta)
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in merged.items())


def test_a_silenced_model_is_the_first_one_and_speaks_again_after_an_error(model):
    whole, adapted = load(model), load(model)
    add_adapters(adapted, LORA, seed=0)
    torch.nn.init.normal_(adapted.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    with torch.no_grad():
        loud = naive_logprobs(adapted, SAMPLES[0])
        with pytest.raises(KeyError), without_adapters(adapted):
            assert torch.equal(naive_logprobs(adapted, SAMPLES[0]), naive_logprobs(whole, SAMPLES[0]))
            raise KeyError
        assert torch.equal(naive_logprobs(adapted, SAMPLES[0]), loud) and not torch.equal(loud, naive_logprobs(whole, SAMPLES[0]))


def test_a_target_that_the_model_does_not_have_is_told_before_a_rank_starts(start):
    with pytest.raises(ValueError, match=r"learner\.lora\.targets: no layer 'qproj' in .*it has .*q_proj"):
        start(LoraConfig(targets=("v_proj", "qproj")))
