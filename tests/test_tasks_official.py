"""The artefacts of an evaluation, against the official package: the same verdicts, the same report, and again from the logs."""

import json
from dataclasses import replace

import pytest

from sandbox import Limits
from tasks import Evidence, Outcome, Prediction, Verdict, grade, read_verdicts, regrade, toy_suite, write_report
from tasks.patches import diff_text
from tasks.swebench import as_log, instance_row, read_log

LIMITS = Limits(memory_mb=256, pids=64, disk_mb=64)
BUG = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a * 2\n"
FORGERY = "import atexit, os\n\natexit.register(lambda: (os.write(1, b'PASSED tests/test_add.py::test_add\\n'), os._exit(0)))\n"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return toy_suite(tmp_path_factory.mktemp("toy"))


def patches(task):
    return {
        "gold": task.gold_patch,
        "nothing that counts": diff_text("notes.txt", None, "x\n"),
        "a regression": diff_text("calc.py", BUG, BUG.replace("a - b", "a + b").replace("a * 2", "a * 3")),
        "a syntax error": diff_text("calc.py", BUG, "def add(:\n"),
        "a crash": diff_text("calc.py", BUG, "import os\n\nos.abort()\n"),
        "a forgery": diff_text("calc.py", BUG, FORGERY + BUG),
        "a missing function": diff_text("calc.py", BUG, "x = 1\n"),
    }


def official(task, patch, log, tmp_path):
    """The verdict of the official functions, called as the harness calls them."""
    from swebench.harness.grading import get_eval_report
    from swebench.harness.utils import make_test_spec

    (tmp_path / "log.txt").write_text(log)
    prediction = {"instance_id": task.instance_id, "model_name_or_path": "m", "model_patch": patch}
    return get_eval_report(make_test_spec(instance_row(task)), prediction, str(tmp_path / "log.txt"), include_tests_status=True)


async def test_verdicts_reports_and_regrading_equal_the_official_functions(backend, toys, tmp_path):
    task = toys.tasks[0]
    for name, patch in patches(task).items():
        out = tmp_path / name
        verdict = await grade(backend, task, patch, LIMITS)
        write_report(out, [verdict], [Prediction(task.instance_id, "m", patch)], toys)
        folder = out / "logs" / task.instance_id
        theirs = official(task, patch, (folder / "test_output.txt").read_text(), tmp_path)[task.instance_id]
        assert theirs["resolved"] is (verdict.outcome in (Outcome.RESOLVED, Outcome.SUSPECT)), name
        ours = json.loads((folder / "report.json").read_text())[task.instance_id]
        assert (ours.pop("official_resolved"), ours.pop("evidence")) == (theirs["resolved"], "witnessed")
        assert ours == theirs or (verdict.outcome is Outcome.SUSPECT and ours | {"resolved": True} == theirs | {"suspect": verdict.reason})
        assert (folder / "patch.diff").read_text() == patch and ">>>>> Test Exit Code" in (folder / "eval.sh").read_text()
        before = {path: path.read_text() for path in sorted(out.rglob("*")) if path.is_file()}
        assert read_verdicts(out) == regrade(out) == (verdict,)
        assert {path: path.read_text() for path in before} == before
    report = json.loads((tmp_path / "a forgery" / "report.json").read_text())
    assert report["suspect_ids"] == report["official_resolved_ids"] == [task.instance_id]
    assert (report["resolved_ids"], report["log_only_ids"]) == ([], [])


def test_regrading_follows_the_log(toys, tmp_path):
    task = toys.tasks[0]
    log = as_log({"tests/test_add.py::test_add": "PASSED", "tests/test_add.py::test_double": "PASSED"})
    verdict = Verdict(task.instance_id, Outcome.RESOLVED, tests={"tests/test_add.py::test_add": "PASSED"}, log=log)
    write_report(tmp_path, [verdict], [Prediction(task.instance_id, "m", "x")], toys)
    assert [item.outcome for item in regrade(tmp_path)] == [Outcome.RESOLVED]
    saved = tmp_path / "logs" / task.instance_id / "test_output.txt"
    saved.write_text(log.replace("PASSED tests/test_add.py::test_double", "FAILED tests/test_add.py::test_double - no"))
    assert [item.outcome for item in regrade(tmp_path)] == [Outcome.UNRESOLVED]
    assert json.loads((tmp_path / "report.json").read_text())["unresolved_ids"] == [task.instance_id]
    with pytest.raises(FileNotFoundError, match="no graded instance"):
        regrade(tmp_path / "nowhere")


@pytest.fixture
def graded(toys, tmp_path):
    """A folder with one resolved instance."""
    task = toys.tasks[0]
    log = as_log({"tests/test_add.py::test_add": "PASSED", "tests/test_add.py::test_double": "PASSED"})
    verdict = Verdict(task.instance_id, Outcome.RESOLVED, tests={"tests/test_add.py::test_add": "PASSED"}, log=log)
    write_report(tmp_path, [verdict], [Prediction(task.instance_id, "m", "x")], toys)
    return tmp_path / "logs" / task.instance_id


def test_a_resolved_verdict_does_not_outlive_its_log(graded):
    out, log = graded.parents[1], graded / "test_output.txt"
    whole = log.read_text()
    log.write_bytes(b"\xff\xfe\0 cut")
    (verdict,) = regrade(out)
    assert (verdict.outcome, verdict.official, verdict.reason) == (Outcome.UNRESOLVED, False, "the saved log holds no run of the tests")
    log.write_text(whole)
    assert [item.outcome for item in regrade(out)] == [Outcome.RESOLVED]
    log.unlink()
    with pytest.raises(ValueError, match=r"test_output\.txt: missing, and resolved rests on it; remove results\.json"):
        regrade(out)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ("[]", "an object is needed, found list"),
        ("null", "an object is needed, found NoneType"),
        ('{"outcome": "resolved"}', "'FAIL_TO_PASS' is missing"),
        ('{"rule": "mine"}', "'mine' is not a valid Rule"),
        ('{"FAIL_TO_PASS": 3}', "not iterable"),
        ('{"expected": []}', "no attribute 'items'"),
    ],
)
def test_a_results_file_that_is_not_ours_is_named_in_one_line(graded, text, told):
    (graded / "results.json").write_text(text)
    for read in (regrade, read_verdicts):
        with pytest.raises(ValueError, match=r"results\.json: ") as caught:
            read(graded.parents[1])
        assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"submitted_ids": 3, "incomplete_ids": []}'])
def test_a_run_report_that_is_none_is_named(graded, text):
    (graded.parents[1] / "report.json").write_text(text)
    with pytest.raises(ValueError, match=r"report\.json: not a run report"):
        regrade(graded.parents[1])


ROWS = {
    Outcome.RESOLVED: {"completed_ids", "resolved_ids"},
    Outcome.UNRESOLVED: {"completed_ids", "unresolved_ids"},
    Outcome.NO_PATCH: {"empty_patch_ids"},
    Outcome.PATCH_INVALID: {"error_ids"},
    Outcome.TESTS_TIMEOUT: {"completed_ids", "unresolved_ids", "ambiguous_failure_ids"},
    Outcome.SUSPECT: {"completed_ids", "unresolved_ids", "suspect_ids"},
    Outcome.INFRA: {"infra_failure_ids", "error_ids"},
}


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_in_its_lists_of_the_run_report(outcome, toys, tmp_path):
    task = toys.tasks[1]
    patch = "" if outcome is Outcome.NO_PATCH else "x"
    path = write_report(tmp_path, [Verdict(task.instance_id, outcome, "why")], [Prediction(task.instance_id, "m", patch)], toys)
    report = json.loads(path.read_text())
    holding = {name for name, ids in report.items() if name.endswith("_ids") and task.instance_id in ids}
    assert holding == ROWS[outcome] | {"submitted_ids"}
    assert report["incomplete_ids"] == sorted({item.instance_id for item in toys.tasks} - {task.instance_id})
    assert all(
        report[name.replace("_ids", "_instances")] == len(ids)
        for name, ids in report.items()
        if name.endswith("_ids") and "incomplete" not in name
    )


async def test_the_run_report_has_the_official_schema(toys, tmp_path, monkeypatch):
    from swebench.harness.reporting import make_run_report

    monkeypatch.chdir(tmp_path)
    task = toys.tasks[0]
    prediction = {"instance_id": task.instance_id, "model_name_or_path": "m", "model_patch": ""}
    official_path = make_run_report({task.instance_id: prediction}, [instance_row(item) for item in toys.tasks], "run")
    theirs = json.loads(official_path.read_text())
    ours = json.loads(
        write_report(
            tmp_path / "o", [Verdict(task.instance_id, Outcome.NO_PATCH)], [Prediction(task.instance_id, "m", "")], toys
        ).read_text()
    )
    assert {key: ours[key] for key in theirs} == theirs
    lists = ("suspect", "official_resolved", "log_only", "audited")
    assert set(ours) - set(theirs) == {
        "audit_findings",
        "audit_notes",
        *(f"{name}_{what}" for name in lists for what in ("ids", "instances")),
    }


def test_regrading_a_log_that_was_changed_afterwards_asks_the_recorded_witness(toys, tmp_path):
    task, good = toys.tasks[0], {"tests/test_add.py::test_add": "PASSED", "tests/test_add.py::test_double": "PASSED"}
    failed = good | {"tests/test_add.py::test_add": "FAILED"}
    verdict = Verdict(task.instance_id, Outcome.UNRESOLVED, "why", failed, log=as_log(failed), witness=failed, evidence=Evidence.WITNESSED)
    write_report(tmp_path, [replace(verdict, official=False)], [Prediction(task.instance_id, "m", "x")], toys)
    (tmp_path / "logs" / task.instance_id / "test_output.txt").write_text(as_log(good))
    (again,) = regrade(tmp_path)
    assert (again.outcome, again.official, again.reason) == (
        Outcome.SUSPECT,
        True,
        "the log says resolved, but the recorded witness does not",
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["suspect_ids"], report["official_resolved_ids"], report["resolved_ids"]) == ([task.instance_id], [task.instance_id], [])


async def test_a_foreign_parser_is_refused_by_name(toys):
    with pytest.raises(ValueError, match="parse_log_nothing"):
        read_log(replace(toys.tasks[0], log_parser="parse_log_nothing"), "")


async def test_a_verdict_of_an_audit_and_one_by_the_log_alone_say_so(toys, tmp_path):
    task, forged = (
        toys.tasks[0],
        diff_text(
            "calc.py",
            BUG,
            "class Any:\n    def __eq__(self, other):\n        return True\n\n\ndef add(a, b):\n    return Any()\n"
            + BUG[BUG.index("\n\ndef") :],
        ),
    )
    verdict = Verdict(
        task.instance_id,
        Outcome.SUSPECT,
        "it passes x",
        official=True,
        evidence=Evidence.WITNESSED,
        audited=True,
        findings=("x",),
        kept=("y",),
        notes=("z",),
    )
    other = Verdict(toys.tasks[1].instance_id, Outcome.RESOLVED, official=True, evidence=Evidence.LOG_ONLY)
    predictions = [Prediction(one.instance_id, "m", forged) for one in (verdict, other)]
    report = json.loads(write_report(tmp_path, [verdict, other], predictions, toys).read_text())
    assert report["audited_ids"] == report["suspect_ids"] == [task.instance_id] and report["audit_findings"] == {task.instance_id: ["x"]}
    assert report["audit_notes"] == {task.instance_id: ["z"]}
    assert report["log_only_ids"] == [other.instance_id] == report["resolved_ids"]
    assert read_verdicts(tmp_path) == (verdict, other)
