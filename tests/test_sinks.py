"""Copies of the metrics: TensorBoard's files read back by TensorBoard, whole and once after a kill; what is not installed is told."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pipeline.cli import main
from pipeline.config import Config, TelemetryConfig
from pipeline.config_io import load_config
from pipeline.convert import tiny_model
from pipeline.jobs import start_run
from pipeline.journal import Journal
from pipeline.sinks import check_sinks, identify, open_sinks
from pipeline.train import train
from tasks import toy_suite
from tests.toy_loop import CHAT, TEXTS, DyingLearner, make_config, make_world


def read_back(run: Path) -> list[tuple[int, str, float]]:
    """Every value of every event file, in the order in which they were written."""
    events = [event for file in sorted((run / "tensorboard").iterdir()) for event in EventFileLoader(str(file)).Load()]
    return [(event.step, value.tag, value.tensor.float_val[0]) for event in events for value in event.summary.value]


def recorded(journal: Journal) -> list[tuple[int, str, float]]:
    return [(step, key, pytest.approx(value)) for step, metrics in journal.steps().items() for key, value in metrics.items()]


async def test_a_run_that_was_killed_has_every_step_once_in_tensorboard(tmp_path: Path) -> None:
    config = make_config(5).model_copy(update={"telemetry": TelemetryConfig(sinks=("tensorboard",))})
    with Journal(tmp_path) as journal:
        with pytest.raises(KeyboardInterrupt):
            await train(config, journal, make_world(learner=DyingLearner(CHAT, TEXTS)))
        assert 0 < journal.next_step < 5
        assert read_back(tmp_path) == recorded(journal)
        await train(config, journal, make_world())
        assert len(journal.steps()) == 5
        assert read_back(tmp_path) == recorded(journal)


def test_a_step_that_was_committed_and_not_copied_is_copied_at_the_next_start(tmp_path: Path) -> None:
    with open_sinks(["tensorboard"], tmp_path, {}) as write:
        write(0, {"a/b": 1.0})
    with open_sinks(["tensorboard"], tmp_path, {0: {"a/b": 1.0}, 1: {"a/b": 2.0}}) as write:
        write(2, {"a/b": 3.0})
    assert read_back(tmp_path) == [(0, "a/b", 1.0), (1, "a/b", 2.0), (2, "a/b", 3.0)]


def test_a_run_that_was_killed_after_its_last_step_is_copied_by_the_same_command(tmp_path: Path) -> None:
    toy_suite(tmp_path / "suite")
    model = tiny_model(tmp_path / "model")
    keys = {"tasks": {"suite": str(tmp_path / "suite")}, "model": {"path": str(model)}, "telemetry": {"sinks": ["tensorboard"]}}
    (tmp_path / "c.yaml").write_text(json.dumps(keys))
    start_run(tmp_path / "run", load_config(tmp_path / "c.yaml", ["--train.steps", "1"], Config))
    with Journal(tmp_path / "run") as journal:
        journal.commit_step(0, {"a/b": 1.0})
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run"), "--train.steps", "1"]) == 0
    assert read_back(tmp_path / "run") == [(0, "a/b", 1.0)]


def test_nothing_is_imported_that_was_not_asked_for(tmp_path: Path) -> None:
    with open_sinks([], tmp_path, {0: {"a/b": 1.0}}) as write:
        write(1, {"a/b": 2.0})
    assert list(tmp_path.iterdir()) == [] and not {"wandb", "trackio"} & sys.modules.keys()


def test_a_package_that_is_not_there_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="trackio is not installed: pip install trackio"):
        check_sinks(["tensorboard", "trackio"])
    (tmp_path / "c.yaml").write_text("{tasks: {suite: nowhere}, model: {path: m}, telemetry: {sinks: [trackio]}}\n")
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2
    assert "telemetry.sinks: the package trackio is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ValueError, match="trackio is not installed"):
        check_sinks(["trackio"])


def test_the_identity_of_a_run_folder_moves_with_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    name = identify(tmp_path / "a")
    assert identify(tmp_path / "a") == name != identify(tmp_path / "b")
    assert identify((tmp_path / "a").rename(tmp_path / "c")) == name
