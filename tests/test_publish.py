"""Weights on their way from learner to engine: what is compared, where they pass, and each way with a real server."""

import asyncio
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from pipeline.config import (
    LearnerConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PolicyConfig,
)
from pipeline.engine import engine_command, free_port, start_engine
from pipeline.learner import DeepSpeedLearner
from pipeline.orders import LearnerSetup, Transfer
from pipeline.policy import Sampling, VllmPolicy
from pipeline.prompt import load_chat
from pipeline.publish import PublishError, as_sample, passing_folder, publish
from pipeline.types import Batch
from pipeline.weights import check_layout, describe_difference, digest, read_layout
from pipeline.world import find_rest, find_transfer

# --- what is compared ----------------------------------------------------------------------------------------------


def test_a_digest_tells_type_shape_and_every_bit():
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.bfloat16)
    same, next_up = digest(weight), weight.clone()
    next_up.view(torch.int16)[1, 1] += 1
    assert digest(weight.clone()) == same and same.startswith("bfloat16 [2, 3] ")
    others = [next_up, weight.T, weight.float(), weight.view(3, 2), weight.flip(0)]
    assert len({same, *map(digest, others)}) == 1 + len(others)
    assert digest(weight.T.contiguous()) == digest(weight.T), "the order in memory does not count"


def test_zeros_of_either_sign_are_one_value():
    assert digest(torch.tensor([0.0, 1e-42, 1.0])) == digest(torch.tensor([-0.0, -0.0, 1.0]))


def test_the_first_difference_is_named():
    assert describe_difference({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == ""
    assert (
        describe_difference({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
        == "1 of 2 weights differ, first b: the learner sent 2, the engine holds 3"
    )
    assert "first c: the learner sent none, the engine holds 9" in describe_difference({"a": "1"}, {"a": "1", "c": "9"})


def write_model(folder: Path, *, tied: bool, **shapes: tuple[int, ...]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    save_file({name.replace("_weight", ".weight"): torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def test_an_export_that_cannot_stand_in_for_the_model_is_refused(tmp_path):
    base = write_model(tmp_path / "base", tied=True, a_weight=(2, 3), lm_head_weight=(4, 3))
    assert read_layout(base) == {"a.weight": (2, 3), "lm_head.weight": (4, 3)}
    check_layout(base, {"a.weight": (2, 3)})
    with pytest.raises(ValueError, match=r"a.weight is \[3, 2\], but \[2, 3\] in"):
        check_layout(base, {"a.weight": (3, 2)})
    with pytest.raises(ValueError, match=r"b.weight is \[1\], but absent"):
        check_layout(base, {"a.weight": (2, 3), "b.weight": (1,)})
    untied = write_model(tmp_path / "untied", tied=False, a_weight=(2, 3), lm_head_weight=(4, 3))
    with pytest.raises(ValueError, match=r"lm_head.weight is absent, but \[4, 3\]"):
        check_layout(untied, {"a.weight": (2, 3)})


# --- where they pass -----------------------------------------------------------------------------------------------


def test_weights_pass_through_shared_memory_and_nothing_stays_there(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.publish.SHARED_MEMORY", tmp_path)
    run = tmp_path / "run"
    with passing_folder(run, 1000) as folder:
        assert folder.parent == tmp_path
        folder.mkdir()
        with passing_folder(run, 1000) as again:
            assert again == folder, "a run that was killed here finds what it left"
    with passing_folder(tmp_path / "other", 1000) as other:
        assert other != folder
        other.with_name(other.name + ".partial").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_into_shared_memory_pass_through_the_run(tmp_path):
    with passing_folder(tmp_path, 10**18) as folder:
        assert folder.parent == tmp_path


def test_the_engine_is_told_how_weights_will_come(tmp_path):
    def command(lora=None, **policy):
        return " ".join(engine_command(ModelConfig(path=tmp_path), PolicyConfig(**policy), 8000, lora))

    plain = command()
    assert "--enable-lora" not in plain and "--weight-transfer-config" not in plain and "INSECURE" not in plain
    assert command(LoraConfig(rank=9)) == plain, "merged weights need no room"
    assert "--enable-lora --max-loras 1 --max-lora-rank 16" in command(LoraConfig(rank=9, publish="adapters"))
    with pytest.raises(ValueError, match="up to rank 512"):
        command(LoraConfig(rank=1000, publish="adapters"))
    assert '--weight-transfer-config {"backend": "nccl"}' in command(transfer="nccl")
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION=1" in command(transfer="ipc")


def test_the_learner_is_told_where_to_send(tmp_path):
    import httpx

    policy = VllmPolicy(httpx.AsyncClient(base_url="http://10.0.0.5:8000"), None, Sampling(1.0, ()))
    assert find_transfer(PolicyConfig(), policy) is None
    assert find_transfer(PolicyConfig(transfer="nccl", tensor_parallel=4), policy) == Transfer("nccl", "http://10.0.0.5:8000", 4)


def test_an_engine_sleeps_where_it_is_told_to():
    import httpx

    policy = VllmPolicy(httpx.AsyncClient(base_url="http://10.0.0.5:8000"), None, Sampling(1.0, ()))
    assert find_rest(PolicyConfig(sleep=True), policy) == policy.asleep
    assert find_rest(PolicyConfig(), policy) is nullcontext


# --- with a real server --------------------------------------------------------------------------------------------

real = [pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.asyncio(loop_scope="module")]
LORA = LoraConfig(rank=4, alpha=24.0, targets=("q_proj", "v_proj", "down_proj"), publish="adapters")
TOLERANCE = 0.08


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2, tmp_path_factory):
    """One server with room for adapters and for a transfer, which goes over a store instead of NCCL."""
    import httpx

    config = PolicyConfig(memory_gb=1, max_requests=8, transfer="nccl")
    port = free_port()
    command = engine_command(ModelConfig(path=smollm2, context=1024), config, port, LORA)
    command[command.index("pipeline.worker.WeightLoader")] = "tests.store_transfer.StoreLoader"
    url = f"http://127.0.0.1:{port}"
    server = await start_engine(command, url, tmp_path_factory.mktemp("engine") / "vllm.log")
    template = load_chat(smollm2).template
    policy = VllmPolicy(httpx.AsyncClient(base_url=url, timeout=300), template, Sampling(1.0, template.stop_ids), server)
    yield policy
    await policy.close()


def open_learner(folder, logs, lora=None, **setup):
    learner = LearnerConfig(lora=lora, seed=3)
    return DeepSpeedLearner(LearnerSetup(folder, learner, OptimConfig(lr=1e-3), LossConfig(), logs, **setup))


async def answer_to(engine, probe):
    """A probe continued by the engine: only what it sampled is compared."""
    completion = await engine.sample(probe.ids_T.tolist(), 32, seed=1)
    longer = as_sample([*probe.ids_T.tolist(), *completion.ids])
    return replace(longer, mask_T=np.arange(len(longer.ids_T)) >= len(probe.ids_T))


def probes_of(smollm2):
    template = load_chat(smollm2).template
    return [as_sample(template.start("You fix bugs.", text)[:64]) for text in ("def add(a, b):\n    return a - b\n", "x = [1, 2, 3]\n")]


class TestRealEngine:
    pytestmark = real

    async def test_one_bit_of_one_weight_is_noticed_and_adapters_arrive_alone(self, engine, smollm2, tmp_path):
        from safetensors.torch import load_file, save_file

        probes = probes_of(smollm2)
        learner = open_learner(smollm2, tmp_path / "logs", LORA)
        try:
            learner.export(tmp_path / "bent")
            tensors = load_file(tmp_path / "bent" / "model.safetensors")
            name = "model.layers.7.self_attn.k_proj.weight"
            tensors[name].view(torch.int16)[11, 13] ^= 1
            save_file(tensors, tmp_path / "bent" / "model.safetensors", metadata={"format": "pt"})

            class Bent(VllmPolicy):
                async def load(self, folder, version):
                    return await VllmPolicy.load(self, tmp_path / "bent", version)

            bent = Bent(engine._client, engine._template, engine._sampling)
            merged = replace_publish(learner, "merged")
            with pytest.raises(PublishError, match=rf"1 of \d+ weights differ, first {re.escape(name)}: the learner sent bfloat16"):
                await publish(merged, bent, tmp_path / "out", 1, probes=probes, tolerance=TOLERANCE)
            whole = await publish(merged, engine, tmp_path / "whole", 2, probes=probes, tolerance=TOLERANCE)
            assert whole["publish/weights"] > 200

            batch = Batch(tuple(replace(probe, advantages_T=np.ones_like(probe.advantages_T)) for probe in probes))
            sampled = [await answer_to(engine, probe) for probe in probes]  # on other tokens bfloat16 rounds by .1 on some machines
            before = await engine.logprobs(probes[0].ids_T.tolist())
            for version in (3, 4):
                await asyncio.to_thread(learner.step, batch)
                metrics = await publish(learner, engine, tmp_path / "adapters", version, probes=sampled, tolerance=TOLERANCE)
                after = await engine.logprobs(probes[0].ids_T.tolist())
                assert np.abs(after - before).max() > 0.01, "the step must show"
                before = after
            assert metrics["publish/weights"] == 2 * 3 * 30, "A and B of three layers in each of 30 blocks"
            size = sum(file.stat().st_size for file in (tmp_path / "adapters").iterdir())
            assert size < 0.02 * (tmp_path / "whole" / "model.safetensors").stat().st_size
            async with engine.asleep():
                await asyncio.to_thread(learner.step, batch)
            assert (await engine.sample(probes[0].ids_T.tolist(), 4, seed=1)).version == 4
        finally:
            learner.close()

    async def test_weights_arrive_without_a_folder(self, engine, smollm2, tmp_path):
        """From this process instead of a rank's, because NCCL's stand-in has to be registered; everything else is the real path."""
        from transformers import AutoModelForCausalLM

        import tests.store_transfer  # noqa: F401
        from pipeline.transfer import send

        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        try:
            model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
            with torch.no_grad():
                model.model.layers[3].mlp.down_proj.weight.mul_(1.5)
                model.model.embed_tokens.weight.add_(0.01)
            sent = await asyncio.to_thread(send, model, smollm2, Transfer("nccl", engine.url), "bfloat16", 0, gather=False)
            policy = VllmPolicy(engine._client, engine._template, engine._sampling, transfer="nccl")
            held = await policy.load(tmp_path / "nowhere", 5)
        finally:
            torch.distributed.destroy_process_group()
        assert describe_difference(sent, held) == ""
        assert sent["lm_head.weight"] == sent["model.embed_tokens.weight"] != digest(torch.zeros(1))
        assert (await policy.sample([1, 2, 3], 4, seed=1)).version == 5


def replace_publish(learner, kind):
    """The same ranks, with learner.lora.publish set to another way."""
    import copy

    other = copy.copy(learner)
    other.setup = replace(
        learner.setup, learner=learner.setup.learner.model_copy(update={"lora": LORA.model_copy(update={"publish": kind})})
    )
    return other
