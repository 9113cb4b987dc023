"""The plan: formulas by hand, and configurations far larger than this machine."""

import json
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config_io import load_config
from pipeline.cost import Cost, cost_learning, cost_publish, learning_flops
from pipeline.cost_rollout import decode_step
from pipeline.hardware import PROCESSORS, choose_hardware
from pipeline.plan import make_plan
from pipeline.shape import Shape
from pipeline.work import Work, count_tokens, expect_work

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
    assert any("greengrad train --cluster auto" in note for note in plan.notes)


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


SMALL = Shape(parameters=1100.0, layers=2, hidden=10, kv_width=5, vocabulary=10, embeddings=100.0, source="by hand")
"""P_b = 1000, P_h = 100."""
STAGE2 = CONFIGS / "nebius_stage2.yaml"


def cost_of(*words: str, config: Path = STAGE2) -> Cost:
    found = make_plan(load_config(config, list(words), Config)).cost
    assert found is not None
    return found


def test_a_simulated_user_needs_no_sandbox_and_answers_in_one_turn() -> None:
    keys = {"tasks": {"suite": "s"}, "model": {"path": "m"}, "placement": {"parameters_b": 0.1}}
    plan, agent = [make_plan(Config.model_validate(one), 1e10) for one in (keys | {"simulator": {"episodes": "e"}}, keys)]
    assert "8 questions x 8 answers" in plan.sizes["a step"] and plan.cost is not None and agent.cost is not None
    assert [row.what for row in agent.rows if "sandboxes" in row.what] and not [row.what for row in plan.rows if "sandboxes" in row.what]
    assert plan.cost.grade == 0
    assert (plan.cost.work.turns, plan.cost.work.prompt, plan.cost.work.observed) == (1, 2048 - 256, 0)


def test_the_parameters_that_are_only_looked_up_are_not_multiplied(tmp_path: Path) -> None:
    cost = make_plan(quickstart(tmp_path)).cost
    assert cost is not None
    assert learning_flops(quickstart(tmp_path), SMALL, 7, 0, 0) == 3 * 7 * 2 * 1000
    assert learning_flops(quickstart(tmp_path), SMALL, 0, 7, 0) == 4 * 7 * 2 * 100


def test_attention_and_checkpointing_cost_what_they_do_by_hand(tmp_path: Path) -> None:
    plain = quickstart(tmp_path)
    forward = 7 * (2 * 1000 + 4 * 10 * 2 * 6 / 2)
    assert learning_flops(plain, SMALL, 7, 0, length=6) == 3 * forward
    checkpointed = quickstart(tmp_path, "--learner.activation_checkpointing", "true")
    assert learning_flops(checkpointed, SMALL, 7, 0, length=6) == 4 * forward
    lora = quickstart(tmp_path, "--learner.lora.rank", "8")
    assert learning_flops(lora, SMALL, 7, 0, length=6) == 2 * forward


def test_one_request_waits_for_memory_and_many_for_computing() -> None:
    h100 = choose_hardware(load_config(STAGE2, ["--placement.gpu", "H100"], Config).placement)
    few, why_few = decode_step(SMALL, h100, 1, 3)
    assert why_few == "memory bandwidth" and few == pytest.approx((2 * 1100 + 4 * 5 * 2 * 3) / (3350e9 * 0.6) + 0.005)
    many, why_many = decode_step(SMALL, h100, 1e6, 0)
    assert why_many == "computing" and many == pytest.approx(1e6 * 2 * 1100 / (989e12 * 0.4) + 0.005)
    assert decode_step(SMALL, h100, 1e6, 0, gpus=2)[0] == pytest.approx((many - 0.005) / 2 + 0.005)


def test_a_prompt_is_computed_once_for_the_episodes_that_fit_into_a_micro_batch(tmp_path: Path) -> None:
    work = Work(episodes=8, turns=2, longest=2, prompt=100, sampled=10, observed=40, trained_groups=1)
    sizes = {"50000": 8 * 100 + 100, "320": 8 * 100 + 4 * 100, "100": 8 * 200}
    for room, tokens in sizes.items():
        assert count_tokens(quickstart(tmp_path, "--learner.micro_tokens", room), work) == (tokens, 8 * 2 * 10)
    assert count_tokens(quickstart(tmp_path, "--learner.share_prefixes", "false"), work)[0] == 8 * 200


def test_an_update_takes_its_flops_or_its_exchanges_whichever_is_longer() -> None:
    def seconds(*words: str) -> float:
        config = load_config(STAGE2, ["--rollout.group_size", "1", "--optim.batch_episodes", "100", *words], Config)
        return cost_learning(config, SMALL, choose_hardware(config.placement), work)

    work = Work(100, turns=1, longest=1, prompt=1e5, sampled=1e5, observed=0, trained_groups=100)
    layers, head = 100 * 2e5 * (2 * 1000 + 4 * 10 * 2 * 1e5), 2 * 100 * 1e5 * 100
    assert seconds() == pytest.approx((4 * layers + 4 * head) / (128 * 989e12 * 0.4))
    batches = -(-100 * 2e5 // (131072 * 16))
    assert seconds("--placement.network_gb_s", "1e-6") == pytest.approx(batches * 3 * 2 * 1100 / 1e3)


def test_a_publish_moves_the_weights_or_the_adapters() -> None:
    def seconds(*words: str) -> float:
        config = load_config(STAGE2, list(words), Config)
        return cost_publish(config, SMALL, choose_hardware(config.placement))

    assert seconds() == pytest.approx(2 * 2 * 1100 / 2e9)
    assert seconds("--policy.transfer", "nccl", "--policy.engines", "1") == pytest.approx(2 * 1100 / 50e9)
    adapters = ("--learner.lora.rank", "1", "--learner.lora.targets", '["q_proj"]', "--learner.lora.publish", "adapters")
    assert seconds(*adapters) == pytest.approx(2 * 2 * (4 * 10 * 1 * 1 * 2) / 2e9)


def test_what_is_not_said_of_episodes_is_as_long_as_they_may_be() -> None:
    work = expect_work(load_config(STAGE2, [], Config))
    assert (work.episodes, work.turns, work.length) == (1000, 80, pytest.approx(131072))
    said = ["--placement.episode.turns", "10", "--placement.episode.observation_tokens", "50", "--placement.episode.sampled_tokens", "20"]
    work = expect_work(load_config(STAGE2, [*said, "--placement.episode.prompt_tokens", "300"], Config))
    assert (work.turns, work.longest, work.length, work.context) == (10, 80, 1000, 650)
    filled = expect_work(load_config(STAGE2, ["--rollout.fill_groups", "150", "--placement.episode.signal", "0.5"], Config))
    assert (filled.episodes, filled.trained_groups) == (3000, 150)


def test_a_72b_step_at_131k_on_16_nodes_takes_hours_not_days() -> None:
    cost = cost_of()
    assert cost.rollout.engines == 16 and cost.rollout.in_flight == 512 and cost.rollout.bound == "memory bandwidth"
    assert cost.computed == pytest.approx(131e6, rel=0.01) and cost.trained == pytest.approx(0.27 * 0.875 * 131e6, rel=0.01)
    assert 1000 < cost.rollout.seconds < 10_000 and 1000 < cost.learn < 10_000
    assert cost.step == pytest.approx(cost.rollout.seconds + cost.grade + cost.learn + cost.publish)


@pytest.mark.parametrize(
    ("more", "falls"),
    [
        (("--placement.nodes", "32", "--learner.ranks", "256", "--policy.engines", "32"), "step"),
        (("--placement.tflops", "2000"), "learn"),
        (("--placement.memory_gb_s", "9000"), "rollout"),
        (("--placement.episode.turns", "40", "--placement.episode.observation_tokens", "500"), "step"),
        (("--placement.episode.signal", "0.5"), "learn"),
        (("--policy.transfer", "nccl", "--policy.engines", "1"), "publish"),
        (("--placement.storage_gb_s", "20"), "publish"),
        (("--placement.episode.tool_seconds", "0"), "rollout"),
        (("--placement.episode.grade_seconds", "0.1"), "grade"),
    ],
)
def test_more_of_what_is_scarce_or_less_to_do_takes_less_time(more: tuple[str, ...], falls: str) -> None:
    def seconds(cost: Cost) -> float:
        return cost.rollout.seconds if falls == "rollout" else float(getattr(cost, falls))

    assert seconds(cost_of(*more)) < seconds(cost_of())


def test_more_machines_help_until_the_engines_are_full() -> None:
    seconds = [cost_of("--sandbox.concurrency", count).rollout.seconds for count in ("32", "128", "512", "2048")]
    assert seconds[0] > seconds[1] > seconds[2] and seconds[3] >= 0.9 * seconds[2]
    assert cost_of("--sandbox.concurrency", "2048").rollout.decoding == 32  # policy.max_requests


def test_engines_with_gpus_of_their_own_make_a_step_the_longer_of_two_paths() -> None:
    lag = ["--policy.sleep", "false", "--train.max_lag", "1", "--loss.old_logprobs", "engine", "--policy.engines", "8"]
    apart = cost_of(*lag, "--learner.ranks", "64", "--placement.episode.turns", "40")
    sampling = apart.rollout.seconds - apart.rollout.tail + apart.grade
    assert apart.rollout.engines == 8 and apart.rollout.tail > 0
    assert apart.step == max(sampling, apart.learn + apart.publish)


def test_engines_that_find_no_gpus_are_told() -> None:
    plan = make_plan(load_config(STAGE2, ["--policy.sleep", "false"], Config))
    assert any("want 128 GPUs, and 0 are left" in note for note in plan.notes) and "GPUs of their own" in plan.sizes["placement"]
    assert not any("are left" in note for note in make_plan(load_config(STAGE2, [], Config)).notes)


def test_a_model_that_is_served_beside_the_policy_is_told(tmp_path: Path) -> None:
    served = ["--reward.kind", "judge", "--reward.judge.path", "models/judge"]
    assert any("reward.judge.path: a second vLLM server" in note for note in make_plan(quickstart(tmp_path, *served)).notes)
    away = ["--reward.kind", "judge", "--reward.judge.url", "http://judge"]
    assert not any("second vLLM" in note for note in make_plan(quickstart(tmp_path, *away)).notes)


def test_on_one_machine_a_lag_saves_no_time(tmp_path: Path) -> None:
    lag = make_plan(quickstart(tmp_path, "--train.max_lag", "1", "--loss.old_logprobs", "engine")).cost
    assert lag is not None and any("no time to be saved" in note for note in lag.notes)
    assert lag.step == lag.rollout.seconds - lag.rollout.tail + lag.grade + lag.learn + lag.publish


def test_a_kv_cache_that_does_not_hold_all_episodes_costs_prefill() -> None:
    roomy, tight = cost_of("--sandbox.concurrency", "64"), cost_of("--sandbox.concurrency", "1000")
    assert roomy.rollout.again == 0
    cached = (141e9 * 0.9 * 8 - 2 * 72.7e9) / (4 * 1024 * 82)
    assert tight.rollout.again == pytest.approx(1 - cached / (1000 / 16 * tight.work.context))


def test_graders_that_do_not_keep_up_are_waited_for() -> None:
    cost = cost_of("--placement.episode.grade_seconds", "20000", "--sandbox.concurrency", "128")
    assert cost.grade == pytest.approx(1000 * 20000 / 128 - cost.rollout.seconds)


def test_a_machine_without_gpus_is_planned_with_the_rates_of_the_log(tmp_path: Path) -> None:
    config = quickstart(tmp_path, "--placement.tflops", "0.5")
    assert choose_hardware(quickstart(tmp_path).placement) == PROCESSORS
    cost = make_plan(config).cost
    assert cost is not None and cost.hardware.tflops == 0.5 and "set: tflops" in cost.hardware.source
    assert cost.rollout.engines == 1 and cost.rollout.bound == "memory bandwidth"
