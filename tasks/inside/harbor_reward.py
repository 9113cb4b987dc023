"""Runs in Harbor's verifier: row.json and the log of an evaluation -> "1" or "0", by SWE-bench's rule; Python 3.7 or later, no packages.

Logs of plain pytest are read here; for the other parsers the swebench package must be installed.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
BROKEN = (">>>>> Patch Apply Failed", ">>>>> Reset Failed", ">>>>> Tests Errored", ">>>>> Tests Timed Out")
GOOD = ("PASSED", "XFAIL")


def read_pytest(text: str) -> dict[str, str]:
    """Test id -> status, of the lines "STATUS id ..." of pytest -rA; the last one of an id counts."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        words = (line.replace(" - ", " ") if line.startswith("FAILED") else line).split()
        if not line.startswith(("FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL")) or len(words) < 2:
            continue
        if words[0] == "SKIPPED" and re.match(r"\[\d+\]$", words[1]):
            continue
        found[words[1]] = words[0]
    return found


def status(test: str, found: dict[str, str]) -> str | None:
    """The status of a test; an id that was cut inside its parameters stands for all that begin so, where they agree."""
    if test in found or test.count("[") <= test.count("]"):
        return found.get(test)
    matches = [found[name] for name in found if name.startswith(test)]
    return matches[0] if len({one in GOOD for one in matches}) == 1 else None


def is_resolved(row: dict[str, Any], log: str) -> bool:
    """Every FAIL_TO_PASS passed, every PASS_TO_PASS passed or was skipped, and the exit code does not contradict."""
    if START not in log or END not in log or any(mark in log for mark in BROKEN):
        return False
    found = read_pytest(log.split(START)[1].split(END)[0]) or read_pytest(log)
    code = re.search(r">>>>> Test Exit Code:\s*(-?\d+)", log)
    if not found or (code and int(code.group(1)) and not any(one in ("FAILED", "ERROR") for one in found.values())):
        return False
    fixed = all(status(test, found) in GOOD for test in row["FAIL_TO_PASS"])
    return fixed and all(status(test, found) in (*GOOD, "SKIPPED") for test in row["PASS_TO_PASS"])


def is_resolved_officially(row: dict[str, Any], path: str) -> bool:
    """The same by the official functions."""
    from swebench.harness.grading import get_eval_report
    from swebench.harness.utils import make_test_spec

    blank = {"image": "", "eval_script": "", "repo": row.get("repo", ""), "version": ""}
    prediction = {"instance_id": row["instance_id"], "model_name_or_path": "agent", "model_patch": "-"}
    report = get_eval_report(make_test_spec(dict(blank, **row)), prediction, path, include_tests_status=False)
    return bool(report[row["instance_id"]]["resolved"])


def main(row_path: str, log_path: str) -> None:
    """Print the reward."""
    with open(row_path, encoding="utf-8") as file:
        row = json.load(file)
    if row["log_parser"] != "parse_log_pytest" or row["eval_type"] != "pass_and_fail":
        print(int(is_resolved_officially(row, log_path)))
        return
    with open(log_path, encoding="utf-8", errors="replace") as file:
        print(int(is_resolved(row, file.read())))


if __name__ == "__main__":
    main(*sys.argv[1:])
