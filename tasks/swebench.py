"""The official harness' own functions and artefacts: test specs, parsers, verdicts, reports; knows no sandbox.

The swebench package decides: nothing here re-implements a parser or a rule of its grading. Its import takes seconds (it brings
docker and datasets), so it happens inside the functions.
"""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import Task

START = ">>>>> Start Test Output"
END = ">>>>> End Test Output"


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


def official_script(task: Task) -> str:
    """The evaluation script as the harness runs it: with the exit code of the tests recorded."""
    from swebench.harness.utils import make_test_spec

    script: str = make_test_spec(instance_row(task)).eval_script
    return script


def read_log(task: Task, log: str) -> Reading:
    """The official verdict on an evaluation log (ValueError for a parser that the harness does not have)."""
    from swebench.harness.grading import get_eval_report, get_logs_eval
    from swebench.harness.log_parsers import PARSER_REGISTRY
    from swebench.harness.utils import make_test_spec

    if task.log_parser not in PARSER_REGISTRY:
        raise ValueError(f"{task.instance_id}: log_parser {task.log_parser!r} is not one of the swebench package's")
    spec = make_test_spec(instance_row(task))
    prediction = {"instance_id": task.instance_id, "model_name_or_path": "greengrad", "model_patch": "-"}
    with tempfile.TemporaryDirectory(prefix="greengrad-log-") as folder:
        path = Path(folder) / "test_output.txt"
        path.write_text(log, encoding="utf-8", errors="replace")
        tests, readable = get_logs_eval(spec, str(path))
        report = get_eval_report(spec, prediction, str(path), include_tests_status=True)
    return Reading(bool(report[task.instance_id]["resolved"]), bool(readable), dict(tests), report)


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
