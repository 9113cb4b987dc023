"""The real DeepSpeed on the tiny model: a checkpoint goes on with another number of ranks."""

import multiprocessing
import os
import signal
import threading

import pytest

from pipeline.config import LearnerConfig, LossConfig, OptimConfig
from pipeline.convert import tiny_model
from pipeline.learner import DeepSpeedLearner
from pipeline.orders import LearnerSetup
from pipeline.ranks import RankError
from pipeline.types import Batch
from tests.test_learner import BATCH, SAMPLES

pytestmark = pytest.mark.deepspeed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(model, tmp_path):
    """Starts a learner whose weights move and decay a lot in a few steps."""
    opened = []

    def begin(**learner):
        config = LearnerConfig(**{"micro_tokens": 200, "head_chunk": 64} | learner)
        optim = OptimConfig(lr=1e-2, weight_decay=5.0)
        setup = LearnerSetup(model, config, optim, LossConfig(), tmp_path / f"logs{len(opened)}", start_seconds=300, command_seconds=300)
        opened.append(DeepSpeedLearner(setup))
        return opened[-1]

    yield begin
    for learner in opened:
        learner.close()


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.long), 3])
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_back(start, tmp_path, stage):
    two, one = start(ranks=2, zero_stage=stage), start(ranks=1, zero_stage=stage)
    two.step(BATCH)
    two.save(tmp_path / "two")
    one.restore(tmp_path / "two")
    assert one.steps == 1
    for _ in range(3):
        assert one.fine_tune(BATCH)["loss/loss"] == pytest.approx(two.fine_tune(BATCH)["loss/loss"], rel=1e-5)
    one.fine_tune(Batch(SAMPLES[:3]))  # where the two ranks have not been
    one.save(tmp_path / "one")
    two.restore(tmp_path / "one")
    assert two.steps == 5
    for _ in range(3):
        assert two.fine_tune(BATCH)["loss/loss"] == pytest.approx(one.fine_tune(BATCH)["loss/loss"], rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir() if "logs" not in path.name) == ["one", "two"], "the scratch folder is gone"


@pytest.mark.long
def test_smollm2_on_two_ranks_under_zero_3_is_killed_and_goes_on_with_the_same_losses(smollm2, tmp_path):
    """The model of the quickstart, killed (-9) in the middle of its third step."""

    def begin(name):
        config = LearnerConfig(ranks=2, zero_stage=3, micro_tokens=200, head_chunk=64)
        return DeepSpeedLearner(LearnerSetup(smollm2, config, OptimConfig(lr=1e-3), LossConfig(), tmp_path / name))

    first = begin("first")
    losses = [first.fine_tune(BATCH)["loss/loss"] for _ in range(2)]
    first.save(tmp_path / "saved")
    losses += [first.fine_tune(BATCH)["loss/loss"] for _ in range(2)]
    killer = threading.Timer(0.3, lambda: [os.kill(child.pid, signal.SIGKILL) for child in multiprocessing.active_children()])
    killer.start()
    with pytest.raises(RankError, match="SIGKILL"):
        while True:
            first.fine_tune(BATCH)
    first.close()
    second = begin("second")
    try:
        second.restore(tmp_path / "saved")
        again = [second.fine_tune(BATCH)["loss/loss"] for _ in range(2)]
    finally:
        second.close()
    print(f"losses {losses}, after the kill {again}")
    assert again == losses[2:], "bit by bit"
    assert len(set(losses)) == 4
