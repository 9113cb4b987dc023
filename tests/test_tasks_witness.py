"""The out-of-band record of a test run: what it says, and what it does not let through."""

import hashlib
import hmac
import json

import pytest

from sandbox import Image
from tasks import Outcome, Task
from tasks.evaluation import Evaluation
from tasks.grade import judge
from tasks.swebench import as_log
from tasks.witness import Witness, read_witness

KEY = b"k" * 64


def sign(number, record, key=KEY):
    body = json.dumps({"n": number, **record}).encode()
    return body + b" " + hmac.new(key, body, hashlib.sha256).hexdigest().encode() + b"\n"


def phase(when, outcome="passed", raised="", xfail=False, test="t.py::test_a"):
    return {"id": test, "when": when, "raised": raised, "outcome": outcome, "xfail": xfail}


def record(*phases, key=KEY, end=True):
    rows = [*phases, {"end": 0, "changed": [], "rewritten": []}] if end else [*phases]
    return b"".join(sign(number, row, key) for number, row in enumerate(rows))


PASSED = (phase("setup"), phase("call"), phase("teardown"))
STATUSES = {
    "PASSED": PASSED,
    "FAILED": (phase("setup"), phase("call", "failed", "AssertionError"), phase("teardown")),
    "ERROR": (phase("setup", "failed", "ValueError"), phase("teardown")),
    "SKIPPED": (phase("setup", "skipped", "Skipped"), phase("teardown")),
    "XFAIL": (phase("setup"), phase("call", "skipped", "AssertionError", xfail=True), phase("teardown")),
    "XPASS": (phase("setup"), phase("call", xfail=True), phase("teardown")),
}


@pytest.mark.parametrize("status", STATUSES)
def test_statuses_are_those_that_pytest_prints(status):
    assert read_witness(record(*STATUSES[status]), KEY) == Witness({"t.py::test_a": status}, finished=True, exit_status=0)


def test_an_error_in_the_teardown_of_a_passing_test_is_an_error():
    found = read_witness(record(phase("setup"), phase("call"), phase("teardown", "failed", "OSError")), KEY)
    assert found.statuses == {"t.py::test_a": "ERROR"}


def test_a_report_rewritten_to_passed_is_a_failure_all_the_same():
    found = read_witness(record(phase("setup"), phase("call", "passed", "AssertionError"), phase("teardown")), KEY)
    assert found.statuses == {"t.py::test_a": "FAILED"}


def test_a_phase_reported_again_keeps_its_worst_end():
    found = read_witness(record(phase("setup"), phase("call", "failed", "AssertionError"), phase("call"), phase("teardown")), KEY)
    assert found.statuses == {"t.py::test_a": "FAILED"}


def test_a_record_cut_short_is_not_finished():
    assert not read_witness(record(*PASSED, end=False), KEY).finished
    assert read_witness(b"", KEY) == Witness()


TAMPERED = {
    "another key": record(*PASSED, key=b"x" * 64),
    "a changed line": record(*PASSED).replace(b"setup", b"SETUP"),
    "a line missing": b"".join(record(*PASSED).splitlines(True)[1:]),
    "lines that change places": b"".join(reversed(record(*PASSED).splitlines(True))),
    "a line after the end": record(*PASSED) + sign(4, phase("call")),
    "no signature": b"{}\n",
    "an end of another shape": sign(0, {"end": 0, "changed": []}),
    "a signed line without a number": b"".join(record(*PASSED, end=False).splitlines(True)) + sign(3, {"id": "t.py::b"}),
    "noise": b"\xff\x00 \n",
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_record_that_was_tampered_with_says_so(how):
    assert read_witness(TAMPERED[how], KEY).forged


def task():
    return Task(
        "i__1", "r", "1", "c", "", Image("e"), "", "", "", "parse_log_pytest", ("t.py::a",), ("t.py::b",), requirements=("pytest==8.4.1",)
    )


GOOD = {"t.py::a": "PASSED", "t.py::b": "PASSED"}
JUDGED = {
    "as the log says": (Witness(GOOD, True), Outcome.RESOLVED, ""),
    "never finished": (Witness(GOOD, False), Outcome.SUSPECT, "did not come to its end"),
    "the runner changed": (Witness(GOOD, True, ("_pytest.runner.x",)), Outcome.SUSPECT, "_pytest.runner.x"),
    "a test file that was rewritten": (
        Witness(GOOD, True, rewritten=("tests/t.py",)),
        Outcome.SUSPECT,
        "changed while they ran: tests/t.py",
    ),
    "forged": (Witness(GOOD, True, forged="line 2 of the record"), Outcome.SUSPECT, "tampered with: line 2"),
    "a failure": (Witness(GOOD | {"t.py::b": "FAILED"}, True), Outcome.SUSPECT, "these did not pass: t.py::b"),
    "a test that never ran": (Witness({"t.py::b": "PASSED"}, True), Outcome.SUSPECT, "these did not pass: t.py::a"),
}


@pytest.mark.parametrize("case", JUDGED)
def test_a_resolved_log_is_believed_only_with_its_witness(case):
    witness, outcome, words = JUDGED[case]
    verdict = judge(task(), Evaluation(as_log(GOOD), witness))
    assert verdict.outcome is outcome and words in verdict.reason


def test_a_log_that_is_not_resolved_needs_no_witness():
    verdict = judge(task(), Evaluation(as_log(GOOD | {"t.py::a": "FAILED"}), Witness()))
    assert (verdict.outcome, verdict.reason) == (Outcome.UNRESOLVED, "1 of FAIL_TO_PASS fail: t.py::a")
