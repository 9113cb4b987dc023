"""What all families' rows share, and our own part of task.yaml; knows neither files nor sandboxes."""

import json
from dataclasses import replace
from typing import Any

from sandbox import Image

from .base import Task
from .fields import Broken, maybe, tests, text

OURS = "greengrad"
"""Our own key in task.yaml: environment, requirements, test_seconds."""
COLUMNS = {"gold_patch": "patch", "test_patch": "test_patch", "eval_script": "eval_script", "problem_statement": "problem_statement"}


def parse_row(line: str) -> dict[str, Any]:
    """One line of JSON as a row (Broken where it is none)."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Broken(f"malformed JSON ({error})") from None
    if not isinstance(row, dict):
        raise Broken(f"an object is needed, found {type(row).__name__}")
    return row


def common_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Task that every SWE-bench-like row has under the same names."""
    return {
        "instance_id": text(row, "instance_id"),
        "repo": text(row, "repo"),
        "version": maybe(row, "version"),
        "base_commit": text(row, "base_commit"),
        "problem_statement": text(row, "problem_statement"),
        "test_patch": text(row, "test_patch"),
        "fail_to_pass": tests(row, "FAIL_TO_PASS"),
        "pass_to_pass": tests(row, "PASS_TO_PASS"),
        "hints": maybe(row, "hints_text"),
        "split": maybe(row, "split") or "test",
        "language": maybe(row, "language").lower(),
        "difficulty": maybe(row, "difficulty"),
    }


def with_ours(task: Task, row: dict[str, Any], image: Image) -> Task:
    """A task of a folder of ours: its environment and tree, its pins, its time limit."""
    return replace(task, image=image, test_seconds=_seconds(row), requirements=_requirements(row))


def ours(row: dict[str, Any]) -> dict[str, Any]:
    """Our own part of task.yaml; empty for a task of somebody else's."""
    value = row.get(OURS, {})
    if not isinstance(value, dict):
        raise Broken(f"task.yaml: {OURS}: a mapping is needed, found {type(value).__name__}")
    return value


def _seconds(row: dict[str, Any]) -> float:
    value = ours(row).get("test_seconds", 1800.0)
    if not isinstance(value, int | float) or value <= 0:
        raise Broken(f"task.yaml: {OURS}.test_seconds: a positive number is needed, found {value!r}")
    return float(value)


def _requirements(row: dict[str, Any]) -> tuple[str, ...]:
    value = ours(row).get("requirements", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Broken(f"task.yaml: {OURS}.requirements: a list of text is needed")
    return tuple(value)
