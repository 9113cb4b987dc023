"""Alarms on histories made by hand: each is raised where it should be, none on a healthy run."""

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.alarms import Alarm, describe_alarm, find_alarms, look
from pipeline.journal import Journal
from pipeline.report import write_report
from pipeline.tables import print_run
from pipeline.train import train
from tests.toy_loop import SUBMIT, make_config, make_world

Steps = dict[int, dict[str, float]]


def healthy(count: int = 40, seed: int = 0) -> Steps:
    """A run that learns: the resolve rate rises with noise, entropy halves, the mismatch wanders, one batch in ten is odd."""
    rng = np.random.default_rng(seed)
    steps: Steps = {}
    for step in range(count):
        done = step / count
        steps[step] = {
            "reward/resolved": float(np.clip(0.1 + 0.4 * done + rng.normal(0, 0.08), 0, 1)),
            "batch/kept_groups": float(rng.integers(1, 7)),
            "loss/entropy": 0.6 * (1 - done / 2) * float(rng.uniform(0.8, 1.2)),
            "loss/delta_mean": 0.008 * float(rng.uniform(0.6, 1.7)),
            "batch/repeated_turn_rate": float(rng.uniform(0, 0.2)),
            "batch/truncated_rate": float(rng.uniform(0.1, 0.5)),
        }
        if step % 10 == 9:
            steps[step] |= {"reward/resolved": 0.0, "batch/kept_groups": 0.0, "loss/delta_mean": 0.05, "batch/truncated_rate": 0.9}
    return steps


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_raises_none(seed: int) -> None:
    assert find_alarms(healthy(seed=seed)) == ()


def test_a_short_run_and_one_without_metrics_raise_none() -> None:
    assert find_alarms({}) == find_alarms({0: {}, 1: {}}) == find_alarms(healthy(2)) == ()


@pytest.mark.parametrize(
    ("kind", "worse", "words"),
    [
        ("entropy", {"loss/entropy": 0.01}, "nats a token"),
        ("mismatch", {"loss/delta_mean": 0.2}, "learner and engine differ by 0.2000"),
        ("no reward", {"reward/resolved": 0.0}, "no episode of the last 5 steps was resolved"),
        ("no signal", {"batch/kept_groups": 0.0, "reward/resolved": 0.5}, "50% of the episodes were resolved"),
        ("repetition", {"batch/repeated_turn_rate": 0.6}, "60% of the turns"),
        ("truncation", {"batch/truncated_rate": 0.95}, "95% of the episodes run into a limit"),
    ],
)
def test_what_goes_wrong_is_told_once_with_its_steps_and_ends(kind: str, worse: dict[str, float], words: str) -> None:
    steps = healthy(30, seed=1)
    for step in range(10, 20):
        steps[step] |= worse
    (alarm,) = find_alarms(steps)
    assert alarm.kind == kind and 10 <= alarm.first <= 14 and 19 <= alarm.last <= 22, alarm
    assert words in find_alarms({step: metrics for step, metrics in steps.items() if step < 20})[0].text


def test_an_alarm_that_comes_back_is_two() -> None:
    steps = healthy(40, seed=1)
    for step in (*range(10, 15), *range(25, 30)):
        steps[step] |= {"batch/repeated_turn_rate": 1.0}
    assert [alarm.kind for alarm in find_alarms(steps)] == ["repetition"] * 2


def test_a_step_that_lacks_the_metric_neither_raises_nor_hides() -> None:
    zeros: Steps = {step: {"reward/resolved": 0.0} for step in range(4)}
    assert "no reward" not in look(list(zeros.values()))
    assert "no reward" in look([*zeros.values(), {}, {"reward/resolved": 0.0}])
    assert "no reward" not in look([*zeros.values(), {"reward/resolved": 0.0}, {}])


def test_the_line_of_an_alarm() -> None:
    assert describe_alarm(Alarm("entropy", 3, 7, "it fell")) == "entropy, steps 3 to 7: it fell"
    assert describe_alarm(Alarm("entropy", 3, 3, "it fell")) == "entropy, step 3: it fell"


async def test_a_run_that_resolves_nothing_says_so_once_in_its_log_in_show_and_in_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "no episode of the last 5 steps was resolved"
    with Journal(tmp_path) as journal, caplog.at_level(logging.WARNING, "pipeline.train"):
        await train(make_config(7), journal, make_world((SUBMIT,)))
        print_run(journal, {})
    assert caplog.text.count(told) == 1
    assert f"no reward, steps 4 to 6: {told}" in capsys.readouterr().out
    assert told in write_report(tmp_path).read_text()
