"""Every key of the configuration is read: for each there is a probe through our own code that sees it change, or a test that is named.

EFFECTS: key -> (what is looked at, another value, other keys that the change needs). ELSEWHERE: key -> the test that shows its effect.
A key that stands in neither, or in both, fails here.
"""

import ast
import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.batch import build_batch
from pipeline.collect import Schedule, collect
from pipeline.config import Config
from pipeline.config_io import _keys, load_config
from pipeline.convert import tiny_model
from pipeline.engine import engine_command
from pipeline.expert import ScriptedPolicy
from pipeline.fake import FailingPolicy, MemoryMachines
from pipeline.journal import Journal
from pipeline.learner import share_out
from pipeline.lora import add_adapters, whole_weights
from pipeline.loss import Tokens, policy_loss
from pipeline.orders import learning_rate
from pipeline.packs import NOTHING_FIXED
from pipeline.peak import make_yardstick
from pipeline.plan import make_plan
from pipeline.rollout import Rig
from pipeline.stages.rft import count_steps, fine_tune, rft_optim
from pipeline.suite import choose_tasks, open_chat
from pipeline.train import plan_steps, train
from pipeline.types import Batch, Completion, Episode, Group, Sample, Stop, ToolCall, Turn
from pipeline.weights import Digests
from pipeline.workshop import build_optimizer, deepspeed_config
from pipeline.world import open_rig, setup_learner
from sandbox import FakeSandbox
from tasks import Outcome, Verdict
from tests.toy_loop import RIGHT, SUBMIT, TEXTS, WRONG, grade_text, make_task, make_world, read_patch

ROWS = Path(__file__).parent / "data" / "verified_slice.parquet"
Probe = Callable[[Config, Path], Any]


# ------------------------------------------------------------------------------------------------ what is looked at


def see_command_line(config: Config, folder: Path) -> list[str]:
    """The words that start vLLM."""
    assert config.model is not None
    rope = {"rope_theta": 1e4, "max_position_embeddings": 2048}
    model = config.model.model_copy(update={"path": folder}) if config.model.rope_yarn > 1 else config.model
    (folder / "config.json").write_text(json.dumps(rope))
    return engine_command(model, config.policy, port=1, lora=config.learner.lora)


def see_plan(config: Config, folder: Path) -> object:
    """Everything that `greengrad plan` prints."""
    return make_plan(config, machine_bytes=1e10)


def see_deepspeed(config: Config, folder: Path) -> object:
    """The configuration that DeepSpeed gets."""
    return deepspeed_config(setup_learner(config, folder))


def see_setup(config: Config, folder: Path) -> object:
    """What else a rank starts from."""
    setup = setup_learner(config, folder)
    return setup.temperature, setup.model_folder


def see_optimizer(config: Config, folder: Path) -> object:
    """The settings of AdamW's two groups."""
    groups = build_optimizer(torch.nn.Linear(2, 2), config.optim).param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def see_adapters(config: Config, folder: Path) -> object:
    """Names, shapes and scale of the adapters of a layer that has two projections."""
    layer = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8), "v_proj": torch.nn.Linear(8, 4)})
    assert config.learner.lora is not None
    add_adapters(layer, config.learner.lora, seed=0)
    return [(name, [part.shape for part in parts], scale) for name, parts, scale in whole_weights(layer)]


def see_rates(config: Config, folder: Path) -> list[float]:
    """Learning rates of ten steps."""
    return [learning_rate(step, config.optim, 10) for step in range(10)]


def see_shares(config: Config, folder: Path) -> list[list[list[tuple[object, object]]]]:
    """Rows and weights of each rank's micro-batches."""
    samples = [make_sample(length, f"e{length % 3}", f"g{length % 7}") for length in (5, 60, 40, 90, 33, 21, 70, 12)]
    shares = share_out(setup_learner(config, folder), samples, "policy", NOTHING_FIXED, 0)
    return [[[(micro.ids_N.tolist(), micro.rows, micro.weights_M.tolist()) for micro in step] for step in share] for share in shares]


def make_sample(length: int, episode: str, group: str) -> Sample:
    mask_T = np.arange(length) >= 3
    zeros_T = np.zeros(length, np.float32)
    return Sample(episode, group, np.arange(length), mask_T, zeros_T, mask_T.astype(np.float32))


def see_loss(config: Config, folder: Path) -> list[float]:
    """Loss and gradients of six tokens of two sequences, far enough from pi_old and the engine that every bound holds some."""
    logprobs = torch.tensor([-1.0, -0.2, -2.0, -0.9, -0.1, -3.0], requires_grad=True)
    entropy = torch.tensor([1.0, 0.5, 2.0, 0.3, 0.2, 0.1], requires_grad=True)
    old, engine, reference = (logprobs.detach() + torch.tensor(shift) for shift in SHIFTS)
    advantages, sequences = torch.tensor([1.0, -1.0, 2.0, -2.0, -1.0, 0.5]), torch.tensor([0, 0, 0, 1, 1, 1])
    terms = Tokens(engine, old, advantages, torch.full((6,), 1 / 6), sequences, reference)
    loss, _ = policy_loss(logprobs, entropy, terms, config.loss)
    gradients = torch.autograd.grad(loss, (logprobs, entropy), allow_unused=True)
    return [loss.item(), *(value for gradient in gradients if gradient is not None for value in gradient.tolist())]


SHIFTS = ([0.5, 0.3, -0.6, -2.0, 0.1, 0.0], [1.5, -1.0, 0.1, -2.0, 1.3, -0.2], [0.2, 0.1, -0.4, 0.3, 0.0, 0.7])
"""log pi_old, log p(engine) and log p(reference), less log pi."""


def see_credit(config: Config, folder: Path) -> object:
    """The samples and the counts of two recorded groups: different lengths, a malformed turn, visible tests, a turn limit, a lone grade."""
    first = [attempt("a0", 3, True, passed=(0.0, 0.5, 1.0)), attempt("a1", 2, False, bad=(0,), passed=(0.0, 0.3)), attempt("a2", 5, False)]
    second = [attempt("b0", 4, False, group="b", stop=Stop.MAX_TURNS), attempt("b1", 1, True, group="b")]
    third = [attempt("c0", 1, False, group="c"), attempt("c1", 6, False, group="c")]
    groups = [Group("a", "t", 0, tuple(first)), Group("b", "t", 0, tuple(second)), Group("c", "t", 0, tuple(third))]
    batch = build_batch(groups, config.credit, config.rollout.max_turns, config.rollout.fill_groups)
    return [(s.episode_id, s.ids_T.tolist(), np.round(s.advantages_T, 5).tolist()) for s in batch.samples], batch.metrics[
        "batch/kept_groups"
    ]


def attempt(
    name: str,
    turns: int,
    solved: bool,
    bad: tuple[int, ...] = (),
    passed: tuple[float, ...] = (),
    group: str = "a",
    stop: Stop = Stop.SUBMITTED,
) -> Episode:
    prompt, made = (5, 6), []
    for at in range(turns):
        call = None if at in bad else ToolCall("bash", {"command": "true"})
        done = Completion((10 + at, 7), (-0.5, -0.1), "", 0, True)
        share = passed[at] if passed else 0.1 * at
        made.append(Turn(prompt, done, call, "", anchor=("one", "two", "one", "three", "two", "one")[at], passed=share))
        prompt = (*prompt, *done.ids, 8)
    outcome = Outcome.RESOLVED if solved else Outcome.UNRESOLVED
    return Episode(name, group, "t", tuple(made), stop, "", Verdict("t", outcome))


def see_rollout(config: Config, folder: Path) -> object:
    """One step with a scripted agent in a fake machine: episodes, their turns and what was run in the machine."""
    texts = (WRONG, "no action", "no action", "no action", "```bash\necho\n```", RIGHT, SUBMIT)
    return asyncio.run(_roll(config, lambda chat, task: ScriptedPolicy(chat, task, texts)))


def see_failures(config: Config, folder: Path) -> object:
    """The same with an engine that fails the first nine requests of each task."""
    return asyncio.run(_roll(config, lambda chat, task: FailingPolicy(9, ScriptedPolicy(chat, task, (SUBMIT,)))))


async def _roll(config: Config, make: Callable[[Any, Any], Any]) -> object:
    chat = open_chat(config.model_copy(update={"model": None}))
    said = {"sha256sum": b"abc  -", "pytest": b"1 passed, 1 failed in 1s", "echo": b"x" * 3000}
    machines = MemoryMachines(lambda: FakeSandbox(said, {"/testbed/calc.py": b"def add(a, b):\n    return a - b\n"}))
    rig = Rig(chat, machines, read_patch, grade_text, config.rollout, 100_000, 5, 60, forks=machines, retry_seconds=0)
    tasks = [make_task(number) for number in range(5)]
    groups = [group async for step in collect(lambda task: make(chat, task), tasks, rig, Schedule(steps=1, seed=3)) for group in step]
    return [
        (e.episode_id, e.stop, [(t.prompt, t.completion.ids, t.observation, t.anchor, t.passed, t.tree, t.futures) for t in e.turns])
        for group in groups
        for e in group.episodes
    ]


def see_rig(config: Config, folder: Path) -> object:
    """Machines, their limits, graders and the time an episode has, as they are opened for a run; no daemon is asked before it is needed."""

    async def look() -> object:
        hosts = config.sandbox.hosts or ("unix:///nowhere",)
        sandbox = config.sandbox.model_copy(update={"hosts": hosts})
        chat = open_chat(config.model_copy(update={"model": None}))
        async with open_rig(config.model_copy(update={"sandbox": sandbox}), config.rollout, chat, 1) as rig:
            pool: Any = rig.machines
            grade: Any = rig.grade
            hosts = [(host.url, inspect.getclosurevars(host._connect).nonlocals["image_gb"]) for host in pool._backend._hosts]
            limits = (pool._limits, pool._concurrency, pool._reuse, rig.command_seconds, rig.episode_seconds)
            return hosts, limits, grade.keywords["auditor"].share

    return asyncio.run(look())


def see_tasks(config: Config, folder: Path) -> list[str]:
    """The chosen tasks."""
    try:
        return [task.instance_id for task in choose_tasks(config.tasks, config.tasks.split)]
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]


def see_training(config: Config, folder: Path) -> object:
    """Steps, checkpoints and episodes of a run of the loop on fakes."""
    with Journal(folder / "run") as journal:
        world = make_world(TEXTS)
        asyncio.run(train(config, journal, replace(world, rig=replace(world.rig, rollout=config.rollout))))
        saved = sorted(path.name for path in (folder / "run" / "checkpoints").glob("*"))
        return list(journal.steps()), saved, [[turn.completion.ids for turn in episode.turns] for episode in journal.episodes()]


def see_schedule(config: Config, folder: Path) -> int:
    """Steps whose episodes run while another is trained (tests/test_staleness.py says what comes of it)."""
    with Journal(folder / "run") as journal:
        return plan_steps(config, journal).ahead


def see_yardstick(config: Config, folder: Path) -> object:
    """What the learner's speed is compared with: the peak that is set."""
    return config.telemetry.peak_tflops and make_yardstick(config)


class Counting:
    """A learner that counts what it is given; saves nothing."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def fine_tune(self, batch: Batch) -> dict[str, float]:
        self.sizes.append(len(batch.samples))
        return {"loss/loss": 0.0}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def export(self, folder: Path, *, whole: bool = True) -> Digests:
        folder.mkdir(parents=True)
        return {}


def see_fine_tuning(config: Config, folder: Path) -> object:
    """Batches of the whole stage, and the optimiser's settings."""
    assert config.rft is not None
    learner: Any = Counting()
    with Journal(folder / "rft") as journal:
        fine_tune(config.rft, journal, learner, [make_sample(9, "e", "g")] * 70)
    return learner.sizes, rft_optim(config.optim, config.rft), count_steps(70, config.rft)


def see_commands(config: Config, folder: Path) -> str:
    """What `greengrad train` says of no steps at all, or of demonstrations that are not there."""
    words = [
        "--tasks.suite",
        str(ROWS),
        "--tasks.split",
        see_split(),
        "--model.path",
        str(tiny_model(folder / "m")),
        "--train.steps",
        "0",
        "--name",
        config.name,
    ]
    words += ["--rft.episodes", str(config.rft.episodes)] if config.rft and config.rft.episodes else []
    (folder / "c.yaml").write_text("{}\n")
    command = [sys.executable, "-m", "pipeline.cli", "train", str(folder / "c.yaml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    return f"{done.returncode} {done.stdout} {done.stderr}"


def see_split() -> str:
    from tasks import load_suite

    return load_suite(ROWS).tasks[0].split


# ------------------------------------------------------------------------------------------------ the table

GPU = {"placement.gpus_per_node": 8, "placement.parameters_b": 7}
ADAPTERS: dict[str, object] = {"learner.lora.targets": ["v_proj"]}
SIZE = {"placement.parameters_b": 0.1}
STEP = {"tasks_per_step": 2, "group_size": 2, "max_turns": 9, "format_errors": 9}
ROLL = {f"rollout.{key}": value for key, value in STEP.items()}
LOOP = {"rollout.tasks_per_step": 2, "rollout.group_size": 8, "rollout.max_turns": 4, "train.steps": 4}
ROW = {"tasks.suite": ROWS, "tasks.split": see_split()}
MASK = {"loss.correction_level": "token", "loss.correction_mode": "mask"}
TESTS = {"rollout.visible_tests": "pytest", "rollout.anchors": True}

EFFECTS: dict[str, tuple[Probe, object, dict[str, object]]] = {
    "name": (see_commands, "other", {}),
    "model.path": (see_command_line, "other", {}),
    "model.context": (see_command_line, 4096, {}),
    "model.rope_yarn": (see_command_line, 2.0, {}),
    "tasks.suite": (see_tasks, "nowhere", ROW),
    "tasks.split": (see_tasks, "nowhere", ROW),
    "tasks.limit": (see_tasks, 1, ROW),
    "tasks.audit": (see_rig, 0.5, {}),
    "sandbox.hosts": (see_rig, ["unix:///elsewhere"], {}),
    **{f"sandbox.{key}": (see_rig, 99, {}) for key in ("concurrency", "reuse", "memory_mb", "pids", "cpus", "disk_mb", "command_seconds")},
    "sandbox.output_bytes": (see_rig, 999, {}),
    "sandbox.image_gb": (see_rig, 9.0, {}),
    "sandbox.episode_seconds": (see_rig, 99, {}),
    "rollout.tasks_per_step": (see_rollout, 3, ROLL),
    "rollout.group_size": (see_rollout, 3, ROLL),
    "rollout.max_turns": (see_rollout, 2, ROLL),
    "rollout.action_format": (see_rollout, "tool_json", ROLL),
    "rollout.format_errors": (see_rollout, 2, ROLL),
    "rollout.observation_chars": (see_rollout, 100, ROLL),
    "rollout.anchors": (see_rollout, True, ROLL),
    "rollout.trees": (see_rollout, False, ROLL),
    "rollout.continuations": (see_rollout, 2, ROLL),
    "rollout.visible_tests": (see_rollout, "pytest", ROLL),
    "rollout.infra_retries": (see_failures, 9, ROLL),
    "rollout.temperature": (see_setup, 0.5, {}),
    "rollout.fill_groups": (see_credit, 1, {"credit.length_threshold": 4}),
    "credit.kind": (see_credit, "leave_one_out", {}),
    "credit.length_threshold": (see_credit, 2, {}),
    "credit.length_penalty_on": (see_credit, "resolved", {"credit.length_threshold": 2}),
    "credit.filter_on": (see_credit, "shaped", {"credit.length_threshold": 2}),
    "credit.truncated": (see_credit, "drop", {}),
    "credit.min_graded": (see_credit, 3, {}),
    "credit.format_penalty": (see_credit, 1.0, {"credit.kind": "ms_grpo"}),
    "credit.turn_reward": (see_credit, "tests", {"credit.kind": "return_to_go", **TESTS}),
    "credit.gamma": (see_credit, 0.5, {"credit.kind": "return_to_go"}),
    "credit.turn_weight": (see_credit, 0.5, {"credit.kind": "gigpo", **TESTS}),
    "credit.outcome_weight": (see_credit, 0.5, {"credit.kind": "mt_grpo", "credit.turn_reward": "tests", **TESTS}),
    "credit.samples": (see_credit, "per_turn", {}),
    "credit.draws": (see_credit, 2, {}),
    "credit.draw_weights": (see_credit, "priority", {"credit.draws": 3}),
    "credit.draw_seed": (see_credit, 1, {"credit.draws": 2}),
    "loss.kind": (see_loss, "gspo", {}),
    "loss.eps_low": (see_loss, 0.1, {}),
    "loss.eps_high": (see_loss, 0.1, {}),
    "loss.dual_clip": (see_loss, 3.0, {}),
    "loss.aggregation": (see_shares, "episode", {}),
    "loss.constant_tokens": (see_shares, 7, {"loss.aggregation": "constant"}),
    "loss.correction_level": (see_loss, "geometric", {}),
    "loss.correction_mode": (see_loss, "mask", {"loss.correction_level": "token"}),
    "loss.correction_cap": (see_loss, 1.5, {"loss.correction_level": "token"}),
    "loss.correction_floor": (see_loss, 0.1, MASK),
    "loss.kl_coef": (see_loss, 0.1, {}),
    "loss.kl_estimator": (see_loss, "k3", {"loss.kl_coef": 0.1}),
    "loss.entropy_coef": (see_loss, 0.1, {}),
    "optim.lr": (see_rates, 0.5, {}),
    "optim.warmup_steps": (see_rates, 3, {}),
    "optim.schedule": (see_rates, "cosine", {}),
    "optim.betas": (see_optimizer, [0.5, 0.6], {}),
    "optim.eps": (see_optimizer, 0.5, {}),
    "optim.weight_decay": (see_optimizer, 0.5, {}),
    "optim.grad_clip": (see_deepspeed, 0.5, {}),
    "optim.batch_episodes": (see_shares, 4, {}),
    "learner.ranks": (see_shares, 2, {}),
    "learner.sequence_parallel": (see_shares, 2, {"learner.ranks": 2}),
    "learner.micro_tokens": (see_shares, 64, {}),
    "learner.share_prefixes": (see_shares, False, {}),
    "learner.seed": (see_shares, 1, {"optim.batch_episodes": 4}),
    "learner.zero_stage": (see_deepspeed, 2, {}),
    "learner.dtype": (see_deepspeed, "bfloat16", {}),
    "learner.offload_optimizer": (see_deepspeed, "cpu", {}),
    "learner.head_chunk": (see_plan, 7, SIZE),
    "learner.lora.rank": (see_adapters, 3, ADAPTERS),
    "learner.lora.alpha": (see_adapters, 3.0, ADAPTERS),
    "learner.lora.targets": (see_adapters, ["q_proj"], {"learner.lora.targets": ["v_proj"]}),
    "learner.lora.publish": (see_command_line, "adapters", ADAPTERS),
    "policy.transfer": (see_command_line, "nccl", {}),
    "policy.dtype": (see_command_line, "float32", {}),
    "policy.max_requests": (see_command_line, 7, {}),
    "policy.tensor_parallel": (see_command_line, 2, {}),
    "policy.seed": (see_command_line, 7, {}),
    "policy.memory_gb": (see_plan, 7.0, SIZE),
    "policy.gpu_fraction": (see_plan, 0.5, GPU),
    "train.steps": (see_training, 3, LOOP),
    "train.save_every": (see_training, 3, {**LOOP, "train.keep_checkpoints": 9}),
    "train.keep_checkpoints": (see_training, 1, LOOP),
    "train.seed": (see_training, 1, LOOP),
    "train.max_lag": (see_schedule, 2, {"loss.old_logprobs": "engine"}),
    "train.on_stale": (see_schedule, "mask", {}),
    "telemetry.peak_tflops": (see_yardstick, 7.0, SIZE),
    "rft.episodes": (see_commands, "nowhere", {}),
    "rft.epochs": (see_fine_tuning, 2, {}),
    "rft.lr": (see_fine_tuning, 0.5, {}),
    "rft.batch_episodes": (see_fine_tuning, 7, {}),
    "rft.warmup_steps": (see_fine_tuning, 7, {}),
    "placement.nodes": (see_plan, 2, GPU),
    "placement.gpus_per_node": (see_plan, 8, SIZE),
    "placement.gpu_memory_gb": (see_plan, 100, GPU),
    "placement.parameters_b": (see_plan, 9, SIZE),
    "placement.gpu": (see_plan, "B200", GPU),
    **{f"placement.{key}": (see_plan, 0.75, GPU) for key in ("tflops", "learner_share", "engine_share", "memory_gb_s", "memory_share")},
    "placement.network_gb_s": (see_plan, 0.75, {**GPU, "placement.nodes": 2}),
    "placement.storage_gb_s": (see_plan, 0.75, GPU),
    **{f"placement.episode.{key}": (see_plan, 3.5, GPU) for key in ("turns", "prompt_tokens", "sampled_tokens", "observation_tokens")},
    **{f"placement.episode.{key}": (see_plan, 3.5, GPU) for key in ("tool_seconds", "grade_seconds")},
    "placement.episode.signal": (see_plan, 0.5, GPU),
}

ELSEWHERE = {
    "tasks.repositories": "test_tasks_filters.test_a_run_uses_the_tasks_that_its_configuration_leaves",
    "tasks.languages": "test_tasks_filters.test_a_filter_keeps_what_it_names_and_counts_the_rest",
    "tasks.difficulties": "test_tasks_filters.test_a_run_uses_the_tasks_that_its_configuration_leaves",
    "tasks.max_patch_lines": "test_tasks_filters.test_a_run_uses_the_tasks_that_its_configuration_leaves",
    "tasks.max_files": "test_tasks_filters.test_a_run_uses_the_tasks_that_its_configuration_leaves",
    "tasks.decontaminate": "test_tasks_filters.test_a_run_uses_the_tasks_that_its_configuration_leaves",
    "tasks.history": "test_curriculum.test_a_stage_trains_on_the_pool_that_earlier_runs_leave",
    "sandbox.backend": "test_cli.test_gold_resolves_everything_and_the_second_run_repeats_nothing",
    "rollout.policy": "test_cli.test_noop_resolves_nothing_and_that_is_no_failure_of_the_command",
    "rollout.fill_rounds": "test_filling.filling",
    "rollout.max_new_tokens": "test_rollout.test_an_answer_cut_at_the_token_limit_is_told_so",
    "rollout.prefix.run": "test_prefix.test_a_turn_is_counted_from_the_start_or_from_the_end_and_groups_take_the_episodes_in_turn",
    "rollout.prefix.turn": "test_prefix.test_a_turn_is_counted_from_the_start_or_from_the_end_and_groups_take_the_episodes_in_turn",
    "rollout.infra_stop": "test_train.test_a_run_whose_machines_all_fail_stops_and_goes_on_later_as_if_nothing_had_been",
    "loss.old_logprobs": "test_learner.test_u3_ranks_accumulation_and_zero_stage_change_no_loss_gradient_or_update",
    "learner.activation_checkpointing": "test_learner.test_u3_ranks_accumulation_and_zero_stage_change_no_loss_gradient_or_update",
    "policy.api": "test_chat_policy.test_what_a_chat_server_cannot_do_for_training_is_refused",
    "policy.url": "test_chat_policy.opened",
    "policy.model": "test_cli.test_a_server_that_does_not_answer_is_told",
    "policy.key_env": "test_chat_policy.test_a_conversation_goes_out_as_messages_and_an_answer_comes_back",
    "policy.body": "test_chat_policy.test_a_conversation_goes_out_as_messages_and_an_answer_comes_back",
    "policy.attempts": "test_chat_policy.test_what_may_pass_is_tried_again_and_then_an_error_of_the_engine",
    "policy.requests_per_minute": "test_chat_policy.test_requests_are_paced",
    "policy.request_seconds": "test_chat_policy.test_a_server_that_hangs_is_given_up",
    "policy.price_in": "test_chat_policy.test_an_evaluation_over_http_resolves_what_the_server_solves_and_counts_tokens_and_cost",
    "policy.price_out": "test_chat_policy.test_an_evaluation_over_http_resolves_what_the_server_solves_and_counts_tokens_and_cost",
    "reward.kind": "test_reward.test_what_the_infrastructure_failed_has_no_reward_in_any_channel",
    **{
        f"reward.judge.{key}": "test_reward.test_a_judge_sees_statement_and_diff_and_its_number_is_the_reward"
        for key in ("url", "model", "key_env")
    },
    **{
        f"{place}.{key}": "test_served.test_the_server_is_started_with_its_own_context_and_memory"
        for place in ("reward.judge", "hindsight.judge", "user.server")
        for key in ("path", "context", "memory_gb", "gpu_fraction")
    },
    "reward.judge.attempts": "test_reward.test_a_judge_without_an_answer_is_counted_and_no_one_trains_on_the_episode",
    "reward.judge.request_seconds": "test_reward.test_a_judge_without_an_answer_is_counted_and_no_one_trains_on_the_episode",
    **{f"srl.{key}": "test_srl.test_the_stage_reads_the_keys_of_srl" for key in ("batch", "rounds", "answers", "min_std", "lr", "steps")},
    "srl.episodes": "test_srl.test_an_expert_that_is_missing_or_never_resolved_is_refused_before_anything_is_written",
    "srl.history": "test_srl.test_an_expert_of_n_turns_gives_n_minus_1_prompts_with_the_last_turns_before",
    "simulator.episodes": "test_simulator.test_a_run_that_will_not_do_is_refused_before_anything_is_written",
    "rollout.fill_short": "test_srl.test_the_stage_reads_the_keys_of_srl",
    "credit.min_std": "test_srl.test_a_group_whose_rewards_hardly_differ_carries_no_signal",
    "rft.per_task": "test_demonstrations.test_fine_tuning_reads_per_task_and_leaves_other_tasks_out",
    "rollout.demonstration": "test_demonstrations.test_an_episode_shows_a_demonstration_and_is_trained_on_without_it",
    "planning.grams": "test_planning.test_without_a_gram_the_batch_is_the_same_to_the_bit_and_that_is_told",
    "planning.emphasis": "test_planning.test_a_positive_advantage_becomes_1_2_and_a_negative_one_minus_0_8",
    "planning.alpha": "test_planning.test_without_alpha_the_batch_is_the_same_to_the_bit",
    "planning.top": "test_planning.test_entropy_topk_takes_the_most_uncertain_tokens_with_loss",
    "planning.cap": "test_planning.test_too_many_planning_tokens_leave_out_the_gram_that_covers_most",
    "reward.flip": "test_reward.test_the_loop_learns_by_a_noisy_channel_and_logs_the_truth",
    **{
        f"hindsight.{key}": "test_hindsight.test_the_two_parts_add_up_with_their_weights_and_one_alone_is_itself"
        for key in ("evaluative_weight", "directive_weight", "bound")
    },
    "hindsight.top_k": "test_hindsight.test_a_teacher_speaks_at_hinted_tokens_of_loss_alone_and_the_advantages_stay_r",
    "hindsight.hint_chars": "test_hindsight.test_a_long_hint_is_cut_in_its_middle",
    **{
        f"hindsight.{key}": "test_hindsight.test_a_judge_votes_on_every_turn_but_the_last_and_its_votes_are_kept"
        for key in ("votes", "judge.url", "judge.model", "judge.key_env")
    },
    "hindsight.judge.attempts": "test_hindsight.test_a_judge_without_an_answer_gives_no_vote_and_no_zero",
    "hindsight.judge.request_seconds": "test_hindsight.test_a_judge_without_an_answer_gives_no_vote_and_no_zero",
    "user.kind": "test_user.modelled",
    "user.ask": "test_user.test_without_ask_the_statement_is_short_and_nobody_is_there",
    "user.withhold": "test_user.test_without_ask_the_statement_is_short_and_nobody_is_there",
    "user.seed": "test_user.test_a_scripted_user_is_the_same_each_time_and_drifts_at_its_rate",
    "user.drift": "test_user.test_the_loop_trains_on_dialogues_but_not_on_drifted_ones",
    "user.keep_drifted": "test_user.test_the_loop_trains_on_dialogues_but_not_on_drifted_ones",
    **{
        f"user.server.{key}": "test_user.test_a_model_is_steered_by_history_and_state_at_temperature_0"
        for key in ("url", "model", "key_env")
    },
    "user.server.attempts": "test_user.test_the_longest_wait_for_an_answer_is_that_of_all_attempts",
    "user.server.request_seconds": "test_user.test_a_bad_user_is_counted_and_logged_and_no_one_trains_on_the_episode",
    "train.eval_every": "test_held_out.test_every_eval_every_steps_and_after_the_last_the_held_out_tasks_are_evaluated",
    "train.eval_split": "test_held_out.test_the_held_out_tasks_are_those_of_the_eval_split",
    "train.restarts": "test_recover.test_a_loss_that_comes_back_without_a_step_in_between_ends_the_run",
    "train.stall_seconds": "test_recover.test_a_run_that_stalls_is_opened_again_and_goes_on",
    "policy.engines": "test_engines.test_groups_are_dealt_to_the_engines_and_new_weights_reach_both",
    "telemetry.sinks": "test_sinks.test_a_run_that_was_killed_has_every_step_once_in_tensorboard",
    "policy.sleep": "test_publish.test_an_engine_sleeps_where_it_is_told_to",
    "policy.in_flight": "test_policy.test_loading_pauses_empties_the_prefix_cache_names_the_version_and_resumes",
    "policy.publish_tolerance": "test_train.test_a_publish_that_does_not_arrive_stops_the_run",
}


# ------------------------------------------------------------------------------------------------ the tests

KEYS = sorted(key for key, section in _keys(Config) if section is None)


def configured(keys: dict[str, object]) -> Config:
    words = [word for key, value in keys.items() for word in (f"--{key}", json.dumps(value, default=str))]
    return load_config(None, words, Config)


def test_every_key_has_a_proof_and_no_proof_is_for_a_key_that_is_gone() -> None:
    assert sorted([*EFFECTS, *ELSEWHERE]) == KEYS


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_changes_what_it_is_for(tmp_path: Path, key: str) -> None:
    see, value, needs = EFFECTS[key]
    keys = {"tasks.suite": "s", "model.path": "m", "rft.epochs": 1, **needs}
    seen = []
    for number, chosen in enumerate((keys, keys | {key: value})):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = see(configured(chosen), folder)
        seen.append(json.loads(json.dumps(text, default=str).replace(str(folder), "")))
    assert seen[0] != seen[1], f"{key} = {value} changes nothing"


@pytest.mark.parametrize("key", EFFECTS)
def test_a_probe_sees_the_same_twice(tmp_path: Path, key: str) -> None:
    """Otherwise a difference would prove nothing. One probe and its needs are looked at once."""
    see, _, needs = EFFECTS[key]
    if key != next(name for name, effect in EFFECTS.items() if (effect[0], effect[2]) == (see, needs)):
        return
    seen = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = see(configured({"tasks.suite": "s", "model.path": "m", "rft.epochs": 1, **needs}), folder)
        seen.append(json.loads(json.dumps(text, default=str).replace(str(folder), "")))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("key", ELSEWHERE)
def test_a_proof_that_stands_elsewhere_is_there_and_speaks_of_the_key(key: str) -> None:
    file, _, name = ELSEWHERE[key].partition(".")
    source = (Path(__file__).parent / f"{file}.py").read_text()
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in found, f"{ELSEWHERE[key]} is gone"
    assert key.rpartition(".")[2] in (ast.get_source_segment(source, found[name]) or ""), f"{ELSEWHERE[key]} does not name {key}"


REFUSED = [
    ({"policy.attempts": 3}, r"policy\.attempts = 3 is not read by policy\.api tokens"),
    ({"policy.body": {"top_p": 1}}, r"policy\.body = .* is not read by policy\.api tokens"),
    ({"policy.api": "chat", "policy.url": "http://x", "policy.tensor_parallel": 2}, "is not read by policy.api chat"),
    ({"policy.api": "chat", "policy.url": "http://x", "policy.publish_tolerance": 0.5}, "is not read by policy.api chat"),
    ({"policy.url": "http://x", "policy.dtype": "float32"}, "is not read by policy.api tokens with policy.url"),
    ({"sandbox.backend": "bubblewrap", "sandbox.hosts": ["unix:///x"]}, "not by bubblewrap"),
    ({"sandbox.backend": "bubblewrap", "sandbox.image_gb": 7}, "not by bubblewrap"),
    ({"learner.zero_stage": 0, "learner.offload_optimizer": "cpu"}, "is not read at learner.zero_stage 0"),
    ({"learner.zero_stage": 2, "learner.offload_optimizer": "between_steps"}, "between_steps needs learner.zero_stage 3"),
    ({"learner.offload_optimizer": "nvme"}, "nvme is not covered"),
    ({"learner.ranks": 4, "learner.sequence_parallel": 3}, r"learner\.sequence_parallel = 3 does not divide learner\.ranks = 4"),
]


@pytest.mark.parametrize(("keys", "told"), REFUSED)
def test_a_key_that_the_chosen_backend_does_not_read_is_refused(keys: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        configured({"tasks.suite": "s", **keys})


def test_a_cosine_without_an_end_would_leave_a_rate_of_zero_and_is_refused(tmp_path: Path) -> None:
    config = configured({"tasks.suite": "s", "model.path": "m", "optim.schedule": "cosine"})
    with pytest.raises(ValueError, match="known number of optimiser steps"):
        setup_learner(config, tmp_path)
    assert setup_learner(config, tmp_path, total_steps=9).total_steps == 9
