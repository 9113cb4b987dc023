"""The two published recipes end to end, as they are but for their size: a tiny model, two learner ranks, tasks of two lines."""

from pathlib import Path

import pytest

from pipeline.journal import Journal
from tests.conftest import greengrad

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
    "policy.engines": "1",
    "policy.memory_gb": "1",
    "train.steps": "2",
}
"""What makes them small enough; every other key is the recipe's."""


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
