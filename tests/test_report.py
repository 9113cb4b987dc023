"""The report of a run and the figures in it."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.charts import line_chart
from pipeline.journal import Journal
from pipeline.report import evaluations, write_report
from pipeline.results import Results, load_results, save_results, summarise
from pipeline.statistics import wilson
from pipeline.types import Completion, Episode, Stop, ToolCall, Turn
from tasks import Evidence, Outcome, Verdict


def episode(name: str, outcome: Outcome | None, text: str = "look", stop: Stop = Stop.SUBMITTED) -> Episode:
    turns = (
        Turn((1, 2), Completion((3, 4), (-0.1, -0.2), text, 0, True), ToolCall("bash", {"command": "ls"}), "a.py"),
        Turn((1, 2, 3), Completion((5,), (-0.1,), "?", 0, True), None, "Format error"),
    )
    return Episode(name, "g", f"task-{name}", turns, stop, "diff", Verdict(f"task-{name}", outcome) if outcome else None, seconds=1.5)


def test_the_wilson_interval_is_that_of_the_textbook() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
    assert wilson(0, 0) == (0.0, 1.0)


def test_an_instance_without_a_verdict_counts_in_the_denominator() -> None:
    made = [
        episode("a", Outcome.RESOLVED),
        episode("b", Outcome.UNRESOLVED),
        episode("c", Outcome.INFRA, stop=Stop.INFRA),
        episode("d", None),
    ]
    results = summarise("gold", made, seconds=10)
    assert (results.instances, results.resolved, results.infra, results.rate) == (4, 1, 2, 0.25)
    assert (results.submitted, results.turns, results.malformed, results.tokens) == (0.75, 2.0, 0.5, 12)


def test_what_the_official_parser_says_otherwise_and_what_had_no_witness_is_in_the_table() -> None:
    made = [episode("a", Outcome.RESOLVED), episode("b", Outcome.SUSPECT)]
    plain = summarise("gold", made[:1], seconds=1)
    assert replace(plain, official=1).row()["resolved"] == "1/1"
    verdicts = [Verdict("a", Outcome.RESOLVED, official=True, evidence=Evidence.LOG_ONLY), Verdict("b", Outcome.SUSPECT, official=True)]
    both = summarise("gold", [replace(one, verdict=verdict) for one, verdict in zip(made, verdicts, strict=True)], seconds=1)
    assert both.row()["resolved"] == "1/2 (official: 2) (1 by the log only)"


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    results = summarise("gold", [episode("a", Outcome.RESOLVED)], seconds=3.0)
    save_results(tmp_path, results)
    assert load_results(tmp_path) == results
    assert load_results(tmp_path / "elsewhere") is None


def write_run(run: Path) -> Results:
    """A run of two steps with one evaluation."""
    with Journal(run) as journal:
        journal.record_episode(episode("first", Outcome.RESOLVED, text="<script>alert(1)</script>"), step=0)
        journal.record_episode(episode("second", Outcome.NO_PATCH), step=1)
        journal.commit_step(0, {"reward/resolved": 0.25, "loss/total": -0.5})
        journal.commit_step(1, {"reward/resolved": 0.5, "loss/total": 0.5})
        journal.mark_phase("fine-tuning", 61.0)
    results = summarise("model", [episode("a", Outcome.RESOLVED)], seconds=3.0)
    (run / "eval-before").mkdir()
    save_results(run / "eval-before", results)
    return results


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_curves_phases_evaluations_and_episodes_and_loads_nothing(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = write_report(tmp_path).read_text()
    page = _Page()
    page.feed(text)
    assert page.links == [] and "script" not in page.tags
    assert page.tags.count("figure") == 2 and page.tags.count("details") == 2
    for expected in ("fine-tuning", "eval-before", "100.0 %", "&lt;script&gt;alert(1)&lt;/script&gt;", "task-second", "no_patch"):
        assert expected in text
    assert not re.search(r"https?://", text)


def test_evaluations_are_found_by_folder(tmp_path: Path) -> None:
    results = write_run(tmp_path)
    assert evaluations(tmp_path) == {"eval-before": results}


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is this a run folder"):
        write_report(tmp_path)


def test_a_chart_draws_every_finite_point() -> None:
    svg = line_chart("loss", [(0, 1.0), (1, float("nan")), (2, 3.0)])
    assert svg.count("<circle") == 2
    assert line_chart("loss", [(0, float("nan"))]) == ""
