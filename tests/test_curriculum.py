"""Success rates of tasks over runs, and the pool of a second stage."""

import json
from pathlib import Path

import pytest

from pipeline.actor import choose_tasks
from pipeline.cli import main
from pipeline.config import TasksConfig
from pipeline.curriculum import BINS, Record, histogram, read_records
from pipeline.journal import Journal
from pipeline.types import Episode, Stop
from tasks import Outcome, Verdict, load_suite, toy_suite


def record(run: Path, attempts: list[tuple[str, int, str]]) -> Path:
    """Attempts (task, step, letters: + solved, - not, ? without a verdict) as a run."""
    outcomes = {"+": Outcome.RESOLVED, "-": Outcome.UNRESOLVED, "?": Outcome.INFRA}
    with Journal(run) as journal:
        for name, step, letters in attempts:
            for number, letter in enumerate(letters):
                stop = Stop.INFRA if letter == "?" else Stop.SUBMITTED
                episode = Episode(f"{name}.{step}.{number}", name, name, (), stop, "x", Verdict(name, outcomes[letter]))
                journal.record_episode(episode, step=step)
    return run


@pytest.mark.parametrize(
    ("solved", "fate", "bin"),
    [
        ("---", "never solved", "never"),
        ("+--", "kept", "up to 1/3"),
        ("++-", "too easy", "2/3 and more"),
        ("+++", "too easy", "always"),
        ("+++--", "kept", "below 2/3"),
        ("+-------", "kept", "up to 1/6"),
        ("+-", "kept", "up to 1/2"),
    ],
)
def test_the_rule_drops_what_is_never_solved_and_what_is_solved_in_two_thirds(solved, fate, bin):
    found = Record("a", tuple(letter == "+" for letter in solved))
    assert (found.fate, found.bin) == (fate, bin)


def test_attempts_add_up_over_runs_in_the_order_of_their_steps_and_failed_machines_count_as_none(tmp_path):
    first = record(tmp_path / "a", [("x", 1, "+-"), ("x", 0, "-?-"), ("y", 0, "??")])
    second = record(tmp_path / "b", [("x", 0, "+")])
    records = read_records([first, second])
    assert list(records) == ["x"] and records["x"].solved == (False, False, True, False, True)
    assert records["x"].running() == [0, 0, 1 / 3, 1 / 4, 2 / 5]
    assert sum(histogram(records.values()).values()) == 1 and tuple(histogram([])) == BINS
    with pytest.raises(FileNotFoundError, match="no run"):
        read_records([tmp_path / "nothing"])


def test_a_stage_trains_on_the_pool_that_earlier_runs_leave(tmp_path, caplog):
    suite = toy_suite(tmp_path / "suite")
    easy, hard, *others = [task.instance_id for task in load_suite(suite.path).tasks]
    run = record(tmp_path / "run", [(easy, 0, "+++"), (hard, 0, "---"), (others[0], 0, "+--")])
    chosen = choose_tasks(TasksConfig(suite=suite.path, history=(run,)), None)
    assert [task.instance_id for task in chosen] == others
    with pytest.raises(ValueError, match="leave no task"):
        choose_tasks(TasksConfig(suite=suite.path, history=(record(tmp_path / "all", [(n, 0, "+") for n in (easy, hard, *others)]),)), None)


def test_the_command_draws_the_histogram_and_writes_the_rates(tmp_path, capsys):
    run = record(tmp_path / "run", [("x", 0, "+-"), ("y", 0, "--")])
    assert main(["curriculum", str(run), "--out", str(tmp_path / "deep" / "c.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "2 tasks, 4 attempts with a verdict" in printed and "1 kept, 1 never solved, 0 too easy" in printed
    lines = [json.loads(line) for line in (tmp_path / "deep" / "c.jsonl").read_text().splitlines()]
    assert lines[0] == {"instance_id": "x", "attempts": 2, "solved": 1, "rate": 0.5, "pool": "kept", "running": [1.0, 0.5]}
    assert main(["curriculum", str(tmp_path / "no")]) == 2
