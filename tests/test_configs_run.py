"""The configurations of docs/methods end to end: a tiny model that knows the toy suite by heart, the real vLLM, DeepSpeed and sandboxes."""

from pathlib import Path

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
ONE_STEP = {"rollout.tasks_per_step": "2", "rollout.group_size": "4", "train.steps": "1", "train.eval_every": "0"}
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
