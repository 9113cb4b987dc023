"""Intervals, pass@k and comparisons, against figures worked by hand or by another way of counting."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.compare import compare_runs
from pipeline.journal import Journal
from pipeline.results import summarise
from pipeline.statistics import mcnemar, mean_and_error, paired_difference, pass_at
from pipeline.types import Episode, Stop
from tasks import Outcome, Verdict


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_of_k_that_hold_a_success(attempts, data):
    solved, k = data.draw(st.integers(0, attempts)), data.draw(st.integers(1, attempts))
    draws = list(itertools.combinations([1] * solved + [0] * (attempts - solved), k))
    assert pass_at(k, attempts, solved) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_the_paper_and_what_it_refuses():
    assert (pass_at(1, 10, 3), pass_at(10, 10, 1), pass_at(2, 4, 1)) == (pytest.approx(0.3), 1.0, 0.5)
    for wrong in ((3, 2, 1), (0, 2, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at(*wrong)


def test_the_error_of_a_mean_is_that_of_the_textbook_and_of_one_run_there_is_none():
    assert mean_and_error([0.2, 0.4, 0.6]) == (pytest.approx(0.4), pytest.approx(0.2 / 3**0.5))
    assert mean_and_error([0.5]) == (0.5, None)


def test_mcnemar_counts_the_tails_of_a_fair_coin():
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)


def test_a_paired_difference_has_its_interval_around_it_and_is_the_same_for_the_same_seed():
    a, b = [0] * 30 + [1] * 10, [1] * 12 + [0] * 18 + [1] * 8 + [0] * 2
    found = paired_difference(a, b)
    assert (found.mean, found.only_a, found.only_b) == (pytest.approx(0.25), 2, 12) and found == paired_difference(a, b)
    assert found.low < found.mean < found.high and found.p == pytest.approx(mcnemar(2, 12))
    deviation = np.std([1] * 12 + [-1] * 2 + [0] * 26) / 40**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1), "the normal approximation"
    assert paired_difference(a, a).low == paired_difference(a, a).high == 0.0
    with pytest.raises(ValueError, match="in common"):
        paired_difference([], [])


def episode(name: str, outcome: Outcome | None, attempt: int = 0) -> Episode:
    verdict = Verdict(name, outcome) if outcome else None
    return Episode(f"{name}.{attempt:02d}", name, name, (), Stop.SUBMITTED if outcome else Stop.INFRA, "x", verdict)


GOOD, BAD, INFRA = Outcome.RESOLVED, Outcome.UNRESOLVED, Outcome.INFRA


def test_both_denominators_are_told():
    results = summarise("p", [episode("a", GOOD), episode("b", BAD), episode("c", INFRA), episode("d", None)], 1.0)
    assert (results.rate, results.clean_rate, results.infra) == (0.25, 0.5, 2)
    row = results.row()
    assert row["rate (95 %)"].startswith("25.0 %") and row["without infra"].startswith("50.0 % (9.5 to 90.5), 2 left out")
    assert not results.pass_at and results.error is None
    assert summarise("p", [], 0.0).clean_rate == 0.0


def test_pass_at_k_over_tasks_leaves_failed_machines_out():
    made = {"a": [GOOD, BAD, BAD], "b": [BAD, BAD, BAD], "c": [GOOD, GOOD, INFRA, GOOD]}
    results = summarise("p", [episode(name, outcome, n) for name, outcomes in made.items() for n, outcome in enumerate(outcomes)], 1.0)
    assert results.pass_at == {"1": pytest.approx((1 / 3 + 0 + 1) / 3), "2": pytest.approx((2 / 3 + 0 + 1) / 3), "3": pytest.approx(2 / 3)}
    assert results.error == pytest.approx(mean_and_error([2 / 3, 1 / 3, 1 / 3])[1])
    assert results.row()["pass@1"] == "44.4 +- 11.1 %" and results.row()["pass@3"] == "66.7 %"


def record(run: Path, outcomes: dict[str, list[Outcome | None]]) -> Path:
    run.mkdir()
    with Journal(run) as journal:
        for name, attempts in outcomes.items():
            for number, outcome in enumerate(attempts):
                journal.record_episode(episode(name, outcome, number), step=0)
    return run


def test_two_runs_are_compared_over_the_tasks_that_both_have(tmp_path):
    a = record(tmp_path / "a", {"1": [GOOD], "2": [BAD], "3": [INFRA], "4": [BAD], "only": [GOOD]})
    b = record(tmp_path / "b", {"1": [BAD], "2": [GOOD], "3": [GOOD], "4": [BAD]})
    found = compare_runs(a, b)
    assert (found.tasks, found.rate_a, found.rate_b, found.missing, found.infra) == (4, 0.25, 0.5, (1, 0), (1, 0))
    assert (found.won, found.lost, found.difference.only_b, found.difference.only_a) == (("2", "3"), ("1",), 2, 1)
    assert found.difference.p == 1.0


def test_an_attempt_that_was_repeated_after_a_failure_counts_once(tmp_path):
    a = record(tmp_path / "a", {"1": [INFRA]})
    with Journal(a) as journal:
        journal.record_episode(replace(episode("1", GOOD), episode_id="1.00~1"), step=0)
    assert compare_runs(a, record(tmp_path / "b", {"1": [GOOD, BAD]})).difference.mean == -0.5


def test_an_official_report_is_compared_with_a_run(tmp_path, capsys):
    report = {"submitted_ids": ["1", "2"], "resolved_ids": ["1"], "infra_failure_ids": []}
    (tmp_path / "report.json").write_text(json.dumps(report))
    b = record(tmp_path / "b", {"1": [GOOD], "2": [GOOD]})
    assert main(["compare", str(tmp_path / "report.json"), str(b)]) == 0
    text = capsys.readouterr().out
    assert "+50.0" in text and "won by B: 2" in text
    assert main(["compare", str(tmp_path / "report.json"), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["won"] == ["2"]


def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path, capsys):
    a, b = record(tmp_path / "a", {"1": [GOOD]}), record(tmp_path / "b", {"2": [GOOD]})
    (tmp_path / "odd.json").write_text("[]")
    for second, what in ((b, "no task in common"), (tmp_path / "none", "no run"), (tmp_path / "odd.json", "not a run report")):
        assert main(["compare", str(a), str(second)]) == 2
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1
