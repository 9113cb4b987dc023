"""The official harness' own functions and artefacts: test specs, parsers, verdicts, reports; knows no sandbox.

The swebench package decides wherever a family is graded by its rule: nothing here re-implements a parser or a rule of its grading. Its
import takes seconds (it brings
docker and datasets), so it happens inside the functions.
"""

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .base import Rule, Task
from .parsers import END, PARSERS, START, read_statuses
from .rules import GOOD, is_resolved

__all__ = ["END", "START"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the official grader makes of one evaluation log."""

    resolved: bool
    readable: bool
    """False where the log holds no test result that counts (markers missing, nothing parsed, exit code that contradicts)."""
    tests: dict[str, str]
    """Test id -> status."""
    report: dict[str, Any]
    """The official report.json of the instance, of the harness' own making."""


def official_image(instance_id: str) -> str:
    """The image name that the official harness derives from an instance id."""
    return f"swebench/sweb.eval.x86_64.{instance_id}:latest".lower().replace("__", "_1776_")


def instance_row(task: Task) -> dict[str, Any]:
    """The task as a row of a SWE-bench 5 data set."""
    return {
        "instance_id": task.instance_id,
        "repo": task.repo,
        "version": task.version,
        "base_commit": task.base_commit,
        "patch": task.gold_patch,
        "test_patch": task.test_patch,
        "problem_statement": task.problem_statement,
        "hints_text": task.hints,
        "image": task.image.name,
        "eval_script": task.eval_script,
        "log_parser": task.log_parser,
        "eval_type": task.eval_type,
        "FAIL_TO_PASS": list(task.fail_to_pass),
        "PASS_TO_PASS": list(task.pass_to_pass),
    }


def known_parser(name: str) -> bool:
    """Whether the swebench package has a parser of this name."""
    from swebench.harness.log_parsers import PARSER_REGISTRY

    return name in PARSER_REGISTRY


def official_script(task: Task) -> str:
    """The evaluation script as the harness runs it: with the exit code of the tests recorded."""
    from swebench.harness.utils import make_test_spec

    script: str = make_test_spec(instance_row(task)).eval_script
    return script


def read_log(task: Task, log: str) -> Reading:
    """The verdict on an evaluation log by the rule of the task's family (ValueError for a parser that nobody has)."""
    if task.log_parser in PARSERS:
        statuses = read_statuses(task.log_parser, log)
        return _by_rule(task, Reading(False, bool(statuses), statuses, _report(task, statuses)))
    official = _official_reading(task, log)
    return official if task.rule is Rule.OFFICIAL else _by_rule(task, official)


def _official_reading(task: Task, log: str) -> Reading:
    from swebench.harness.grading import get_eval_report, get_logs_eval
    from swebench.harness.utils import make_test_spec

    if not known_parser(task.log_parser):
        raise ValueError(f"{task.instance_id}: log_parser {task.log_parser!r} is not one of the swebench package's")
    spec = make_test_spec(instance_row(task))
    prediction = {"instance_id": task.instance_id, "model_name_or_path": "greengrad", "model_patch": "-"}
    with tempfile.TemporaryDirectory(prefix="greengrad-log-") as folder:
        path = Path(folder) / "test_output.txt"
        path.write_text(log, encoding="utf-8", errors="replace")
        tests, readable = get_logs_eval(spec, str(path))
        report = get_eval_report(spec, prediction, str(path), include_tests_status=True)
    return Reading(bool(report[task.instance_id]["resolved"]), bool(readable), dict(tests), report)


def _by_rule(task: Task, reading: Reading) -> Reading:
    """The same reading, decided by another rule than the official one."""
    found = is_resolved(task.rule, reading.tests, task.fail_to_pass, task.pass_to_pass, dict(task.expected))
    resolved = reading.readable and found
    report = {task.instance_id: reading.report[task.instance_id] | {"resolved": resolved}}
    return replace(reading, resolved=resolved, report=report)


def _report(task: Task, statuses: dict[str, str]) -> dict[str, Any]:
    """An instance report in the official form, for a log that the official functions cannot read."""
    wanted = {"FAIL_TO_PASS": task.fail_to_pass, "PASS_TO_PASS": task.pass_to_pass}
    status = {
        key: {
            "success": [test for test in tests if statuses.get(test) in GOOD],
            "failure": [test for test in tests if statuses.get(test) not in GOOD],
        }
        for key, tests in wanted.items()
    }
    empty: dict[str, list[str]] = {"success": [], "failure": []}
    told = {"patch_is_None": False, "patch_exists": True, "patch_successfully_applied": bool(statuses), "infra_failure": False}
    return {task.instance_id: {**told, "resolved": False, "tests_status": {**status, "FAIL_TO_FAIL": empty, "PASS_TO_FAIL": empty}}}


def exit_code(log: str) -> int | None:
    """The exit code of the tests as the official script printed it last; None where it did not."""
    found = re.findall(r">>>>> Test Exit Code: (\d+)\s*$", log, re.MULTILINE)
    return int(found[-1]) if found else None


def as_log(statuses: dict[str, str]) -> str:
    """Statuses as the log that the official pytest parsers read."""
    lines = "".join(f"{status} {test}\n" for test, status in statuses.items())
    return f"+ : '{START}'\n{lines}+ : '{END}'\n"


def failure_reason(log: str) -> tuple[str, bool] | None:
    """The harness' advice on a log without a result: (reason, whether the environment is to blame); None for no idea."""
    from swebench.harness.infra_failure import TIER_ENVIRONMENT, classify_text

    found = classify_text(log)
    return (found[0], found[1] == TIER_ENVIRONMENT) if found else None


def dump_json(value: Any) -> str:
    """JSON as the official harness writes it."""
    return json.dumps(value, indent=4)
