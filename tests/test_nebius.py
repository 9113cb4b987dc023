"""The two published recipes end to end, as they are but for their size: a tiny model, two learner ranks, tasks of two lines.

The model first learns the toy tasks by heart from the scripted expert, or nothing would ever be resolved and no step would learn.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.convert import tiny_model
from pipeline.journal import Journal
from tasks.toy import toy_suite

REPOSITORY = Path(__file__).parent.parent
SMALL = {
    "tasks.split": "train",
    "tasks.history": "[]",
    "sandbox.backend": "bubblewrap",
    "sandbox.concurrency": "4",
    "sandbox.memory_mb": "256",
    "sandbox.disk_mb": "64",
    "rollout.tasks_per_step": "2",
    "rollout.group_size": "8",
    "rollout.max_new_tokens": "400",
    "rollout.observation_chars": "400",
    "learner.ranks": "2",
    "learner.sequence_parallel": "2",
    "policy.tensor_parallel": "1",
    "policy.memory_gb": "1",
    "train.steps": "2",
}
"""What makes them small enough; every other key is the recipe's."""
BY_HEART = {"model.rope_yarn": "4.0", "rft.epochs": "200", "rft.lr": "3e-3", "rft.batch_episodes": "2", "rft.warmup_steps": "5"}


def greengrad(folder: Path, command: str, config: Path, **keys: str) -> None:
    """Run a command of ours in `folder`; its output is the failure's text."""
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    told = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", command, str(config), *words], cwd=folder, capture_output=True, text=True, timeout=1200
    )
    assert told.returncode == 0, (told.stdout + told.stderr)[-3000:]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite and a tiny model that knows it by heart, more or less."""
    folder = tmp_path_factory.mktemp("nebius")
    suite, model = toy_suite(folder / "suite").path, tiny_model(folder / "blank", positions=32_768)
    (folder / "gold.yaml").write_text(
        f"tasks: {{suite: {suite}}}\nsandbox: {{backend: bubblewrap}}\nrollout: {{policy: gold, group_size: 1}}\n"
    )
    model_keys = {"model.path": str(model), "model.context": "65536"}
    greengrad(folder, "rollout", folder / "gold.yaml", run="gold", **model_keys)
    greengrad(folder, "train", folder / "gold.yaml", run="learned", **BY_HEART, **model_keys, **{"rft.episodes": "gold"})
    return folder


@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.bubblewrap
@pytest.mark.parametrize("stage", [pytest.param("nebius_stage1", marks=pytest.mark.long), "nebius_stage2"])
def test_a_published_recipe_takes_two_steps(learned: Path, stage: str) -> None:
    keys = SMALL if stage == "nebius_stage2" else {key: value for key, value in SMALL.items() if key != "learner.sequence_parallel"}
    keys |= {"tasks.suite": str(learned / "suite"), "model.path": str(learned / "learned" / "model")}
    greengrad(learned, "train", REPOSITORY / "configs" / f"{stage}.yaml", **keys)
    with Journal(learned / "runs" / stage.replace("_", "-"), readonly=True) as journal:
        steps = journal.steps()
    assert list(steps) == [0, 1]
    assert max(metrics["publish/version"] for metrics in steps.values() if "publish/version" in metrics) >= 1
