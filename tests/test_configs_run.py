"""The configurations of docs/methods end to end: a tiny model that knows the toy suite by heart, the real vLLM, DeepSpeed and sandboxes."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.journal import Journal
from pipeline.types import Stop
from tests.conftest import greengrad

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = {
    "model.context": "65536",
    "sandbox.backend": "bubblewrap",
    "sandbox.concurrency": "4",
    "sandbox.memory_mb": "256",
    "sandbox.disk_mb": "64",
    "rollout.max_new_tokens": "400",
    "learner.ranks": "1",
    "learner.zero_stage": "1",
    "policy.tensor_parallel": "1",
    "policy.memory_gb": "1",
}
"""What makes them small enough for this machine; every other key is the file's."""
ONE_STEP = {
    "rollout.tasks_per_step": "2",
    "rollout.group_size": "4",
    "rollout.max_turns": "4",
    "train.steps": "1",
    "train.eval_every": "0",
}
pytestmark = [pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.bubblewrap]


def run(learned: Path, name: str, model: str = "learned/model", **keys: str) -> Path:
    """`greengrad train` with a configuration in the folder of the suite; its run folder."""
    words = SMALL | {"tasks.suite": str(learned / "suite"), "model.path": str(learned / model)} | keys
    greengrad(learned, "train", CONFIGS / f"{name}.yaml", run=f"runs/{name}", **words)
    return learned / "runs" / name


def test_srl_then_reinforcement(learned: Path) -> None:
    srl = {"srl.episodes": "gold", "srl.steps": "1", "srl.batch": "2", "srl.rounds": "8", "srl.answers": "4"}
    folder = run(learned, "srl_then_rl", **srl, **ONE_STEP)
    with Journal(folder / "srl", readonly=True) as stage, Journal(folder, readonly=True) as journal:
        assert {episode.stop for episode in stage.episodes()} == {Stop.STEP}
        assert stage.steps()[0]["batch/kept_groups"] == 2 and stage.steps()[0]["train/version"] == 1
        assert list(journal.steps()) == [0] and all(episode.verdict for episode in journal.episodes())
    assert (folder / "srl" / "model" / "model.safetensors").is_file()


def test_rejection_fine_tuning_on_what_was_collected_with_a_demonstration(learned: Path) -> None:
    """Collected by the expert, whose prompts begin with another task's episode; trained on without it."""
    greengrad(learned, "rollout", learned / "gold.yaml", run="shown", **{"model.path": "blank", "rollout.demonstration": "gold"})
    with Journal(learned / "shown", readonly=True) as journal:
        assert all(len(episode.turns[0].prompt) > len(episode.plain_start) > 0 for episode in journal.episodes())
    folder = run(learned, "rft", "blank", **{"rft.episodes": "shown", "rft.per_task": "1"})
    with Journal(folder, readonly=True) as journal:
        assert list(journal.steps()) == [0] and journal.steps()[0]["loss/loss"] > 0
    assert (folder / "model" / "model.safetensors").is_file()


QUESTIONS = [{"name": "ask_user", "arguments": {"question": text}} for text in ("What should it return?", "Is there more to know?")]


def test_a_simulated_user_is_tuned_and_reinforced(learned: Path) -> None:
    """On what the scripted user said to a script that asks; half learned by heart, so that its answers at temperature 1 differ in worth."""
    (learned / "asks.json").write_text(json.dumps({"*": QUESTIONS}))
    asking = {"rollout.policy": "script:asks.json", "user.withhold": "1.0"}
    greengrad(learned, "rollout", learned / "gold.yaml", run="asked", **{"model.path": "blank"} | asking)
    tune = {"rft.epochs": "20", "rft.lr": "3e-3", "rft.batch_episodes": "2", "rft.warmup_steps": "5"}
    step = {"rollout.tasks_per_step": "2", "rollout.fill_groups": "1", "rollout.max_new_tokens": "64", "model.context": "4096"}
    folder = run(learned, "simulator", "blank", **{"simulator.episodes": "asked", "train.steps": "1"} | tune | step)
    with Journal(folder / "tuned", readonly=True) as tuned, Journal(folder, readonly=True) as journal:
        losses = [row["loss/loss"] for row in tuned.steps().values()]
        (metrics,) = journal.steps().values()
        assert {episode.stop for episode in journal.episodes()} == {Stop.STEP}
    assert len(losses) == 20 and losses[-1] < 0.5 * losses[0]
    assert metrics["train/version"] == 1 and metrics["optim/grad_norm"] > 0 and 0 < metrics["reward/channel"] < 2.5
    assert (folder / "model" / "model.safetensors").is_file()
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    run(learned, "simulator", "blank", **{"simulator.episodes": "asked", "train.steps": "1"} | tune | step)
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before, "the same command repeats nothing"


COIN = {"reward.kind": "noise", "reward.flip": "0.5"}
"""Outcomes that differ within a group, whatever the tiny model can do: what is looked at is the machinery."""
STEPS = {"ms_grpo": COIN, "hicra": {"planning.grams": "grams.txt"} | COIN, "hindsight": {}, "interactive": COIN, "reward_study": COIN}
"""What each needs beside the size of a step."""
MEASURED = {
    "ms_grpo": "batch/advantage_abs_mean",
    "hicra": "planning/entropy",
    "hindsight": "hindsight/turns",
    "interactive": "ledger/submitted",
    "reward_study": "reward/gap",
}
"""A metric that shows that the method was at work."""


@pytest.mark.parametrize("name", STEPS)
def test_a_method_takes_a_step(learned: Path, name: str) -> None:
    (learned / "grams.txt").write_text("i look at\nhere is the bug\ni fix it\n")
    folder = run(learned, name, **ONE_STEP | {"policy.engines": "1"} | STEPS[name])
    with Journal(folder, readonly=True) as journal:
        (metrics,) = journal.steps().values()
    assert metrics["train/version"] == 1 and metrics["optim/grad_norm"] > 0
    assert np.isfinite(metrics[MEASURED[name]]) and metrics["execution/entropy"] > 0
