"""Real evaluation logs of 2024 with published verdicts: the same verdict, and of each test what the official functions say.

tests/data/parity.json.xz holds the shortest log of each parser and verdict; `scripts/bench/parity.py` made it and grades all 886.
"""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import Image
from tasks import Evidence, Outcome, Task
from tasks.evaluation import Evaluation
from tasks.grade import judge
from tasks.swebench import instance_row
from tasks.witness import Witness

ROOT = Path(__file__).parents[1]
CASES = json.loads(lzma.decompress((ROOT / "tests" / "data" / "parity.json.xz").read_bytes()))
DATA = Path(os.environ.get("GREENGRAD_DATA") or ROOT.parent / "shared" / "data")


def make_task(case) -> Task:
    return Task(
        instance_id=case["instance_id"],
        repo="a/b",
        version="1",
        base_commit="0" * 40,
        problem_statement="",
        image=Image("official"),
        gold_patch="",
        test_patch="",
        eval_script="",
        log_parser=case["log_parser"],
        fail_to_pass=tuple(case["FAIL_TO_PASS"]),
        pass_to_pass=tuple(case["PASS_TO_PASS"]),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['log_parser']}-{case['resolved']}")
def test_a_real_log_has_its_published_verdict_and_the_official_status_of_each_test(case, tmp_path):
    from swebench.harness.grading import get_eval_report, get_logs_eval
    from swebench.harness.utils import make_test_spec

    task = make_task(case)
    verdict = judge(task, Evaluation(case["log"], Witness()))
    assert (verdict.outcome is Outcome.RESOLVED) is verdict.official is case["resolved"] and verdict.evidence is Evidence.LOG_ONLY
    assert verdict.tests == case["tests"] != {}
    (tmp_path / "log").write_text(case["log"])
    spec = make_test_spec(instance_row(task))
    assert get_logs_eval(spec, str(tmp_path / "log"))[0] == case["tests"]
    theirs = get_eval_report(spec, {"instance_id": task.instance_id, "model_patch": "x"}, str(tmp_path / "log"), include_tests_status=True)
    assert theirs[task.instance_id]["tests_status"] == case["tests_status"] and theirs[task.instance_id]["resolved"] is case["resolved"]


def test_every_python_parser_of_the_archive_is_there_and_most_with_both_verdicts():
    verdicts = {(case["log_parser"], case["resolved"]) for case in CASES}
    assert len({parser for parser, _ in verdicts}) == 18 and len(verdicts) == len(CASES) == 31


@pytest.mark.long
def test_all_logs_of_the_archive_have_their_published_verdicts():
    """Fails where the archive is missing: `scripts/test --long` wants it in ../shared/data or $GREENGRAD_DATA."""
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "parity.py"), "--data", str(DATA)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("lists changed since: 0; other: []") == 3 and "313 of 322" in done.stdout
