"""The plan: formulas by hand, and configurations far larger than this machine."""

import json
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config_io import load_config
from pipeline.plan import make_plan

CONFIGS = Path(__file__).parent.parent / "configs"
SMOLLM2 = {
    **{"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "num_attention_heads": 9, "num_key_value_heads": 3},
    **{"intermediate_size": 1536, "tie_word_embeddings": True},
}


def quickstart(folder: Path, *overrides: str) -> Config:
    """The quickstart with a model whose config.json is at hand."""
    (folder / "config.json").write_text(json.dumps(SMOLLM2))
    return load_config(CONFIGS / "quickstart.yaml", ["--model.path", str(folder), *overrides], Config)


def size_of(config: Config, what: str) -> float:
    (row,) = (row for row in make_plan(config).rows if row.phase == "learn" and row.what.startswith(what))
    return row.size


def test_the_parameters_of_a_model_at_hand_are_counted_exactly(tmp_path: Path) -> None:
    assert size_of(quickstart(tmp_path), "weights") == 4 * 134_515_008


def test_zero_stages_divide_what_they_shard(tmp_path: Path) -> None:
    one = {what: size_of(quickstart(tmp_path, "--learner.zero_stage", "0"), what) for what in ("weights", "gradients", "optimiser")}
    for stage, sharded in ((1, ["optimiser"]), (2, ["gradients", "optimiser"])):
        config = quickstart(tmp_path, "--learner.zero_stage", str(stage), "--learner.ranks", "2")
        for what, alone in one.items():
            assert size_of(config, what) == pytest.approx(2 * alone / (2 if what in sharded else 1))  # rows of the CPU are for all ranks


def test_checkpointing_keeps_the_inputs_of_layers_and_the_work_of_one(tmp_path: Path) -> None:
    tokens = ("--learner.micro_tokens", "4096")
    kept = size_of(quickstart(tmp_path, *tokens), "activations")
    checkpointed = size_of(quickstart(tmp_path, *tokens, "--learner.activation_checkpointing", "true"), "activations")
    assert kept == 17 * 4 * 576 * 4096 * 30
    assert checkpointed == (30 + 17) * 4 * 576 * 4096


def test_a_reference_model_is_planned_where_a_kl_term_asks_for_one(tmp_path: Path) -> None:
    both = quickstart(tmp_path, "--loss.kl_coef", "0.01", "--learner.ranks", "2", "--loss.entropy_coef", "0.01")
    assert size_of(both, "reference model") == 2 * 4 * 134_515_008
    assert size_of(both, "head") == 2 * 16 * 49152 * 1024
    assert not any(row.what.startswith("reference") for row in make_plan(quickstart(tmp_path)).rows)


def test_adapters_are_planned_with_their_own_gradients_and_no_reference(tmp_path: Path) -> None:
    lora = quickstart(tmp_path, "--learner.lora.rank", "8", "--learner.lora.targets", '["q_proj", "v_proj"]', "--loss.kl_coef", "0.01")
    assert size_of(lora, "gradients") == 4 * (4 * 576 * 8 * 2 * 30)
    assert size_of(lora, "optimiser") == 8 * (4 * 576 * 8 * 2 * 30)
    assert not any(row.what.startswith("reference") for row in make_plan(lora).rows)


def test_ranks_that_share_sequences_divide_the_activations_and_nothing_else(tmp_path: Path) -> None:
    words = ("--learner.micro_tokens", "4096", "--learner.ranks", "4")
    alone, shared = quickstart(tmp_path, *words), quickstart(tmp_path, *words, "--learner.sequence_parallel", "4")
    for what in ("weights", "gradients", "optimiser", "head"):
        assert size_of(alone, what) == size_of(shared, what)
    assert size_of(shared, "activations") == size_of(alone, "activations") / 4
    assert "1 x 4 that share sequences" in make_plan(shared).sizes["placement"]


def test_131k_tokens_of_a_72b_model_fit_where_a_node_shares_them() -> None:
    def size(*words: str) -> float:
        return make_plan(load_config(CONFIGS / "nebius_stage2.yaml", list(words), Config)).total("learn")

    assert size() < 0.5 * 141e9 < 141e9 < size("--learner.sequence_parallel", "1")


@pytest.mark.parametrize("name", ["nebius_stage1", "nebius_stage2"])
def test_a_72b_run_on_16_nodes_is_planned_without_the_model(name: str) -> None:
    plan = make_plan(load_config(CONFIGS / f"{name}.yaml", [], Config))
    assert "16 nodes x 8 GPUs" in plan.sizes["placement"] and "16 vLLM engines" in plan.sizes["placement"]
    assert plan.phases == ("sample", "learn")
    assert plan.total("sample") == pytest.approx(0.9 * 141e9)
    gradients = next(row.size for row in plan.rows if row.what == "gradients")
    assert gradients == pytest.approx(2 * 72.7e9 / 128)
    assert any("several nodes are planned with, not started" in note for note in plan.notes)


def test_a_placement_with_too_few_gpus_is_told() -> None:
    plan = make_plan(load_config(CONFIGS / "nebius_stage1.yaml", ["--placement.nodes", "2"], Config))
    assert any("learner.ranks = 128 is more than the 16 GPUs" in note for note in plan.notes)


def test_a_model_of_unknown_size_is_refused_in_one_line() -> None:
    config = load_config(CONFIGS / "quickstart.yaml", ["--model.path", "/nowhere"], Config)
    with pytest.raises(ValueError, match=r"placement\.parameters_b is not set"):
        make_plan(config)


def test_a_scripted_rollout_needs_sandboxes_alone() -> None:
    plan = make_plan(load_config(CONFIGS / "rollout_gold.yaml", [], Config))
    assert plan.phases == ("rollout",)
    assert plan.total("rollout") == 8 * (2048 + 512) * 1e6
