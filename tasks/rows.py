"""One row of a SWE-bench 5 data set (a mapping of columns) -> Task; knows neither files nor sandboxes."""

import json
from typing import Any

from sandbox import Image

from .base import Task
from .patches import patch_paths

OURS = "greengrad"
"""Our own key in task.yaml: environment, requirements, test_seconds."""
COLUMNS = {"gold_patch": "patch", "test_patch": "test_patch", "eval_script": "eval_script", "problem_statement": "problem_statement"}
_META = ("instance_id", "repo", "version", "base_commit", "log_parser")


class Broken(Exception):
    """One task cannot be read; the message names the field."""


def parse_row(line: str) -> dict[str, Any]:
    """One line of JSON as a row (Broken where it is none)."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Broken(f"malformed JSON ({error})") from None
    if not isinstance(row, dict):
        raise Broken(f"an object is needed, found {type(row).__name__}")
    return row


def row_image(row: dict[str, Any]) -> Image:
    """The official image of a row: environment and repository in one."""
    return Image(_text(row, "image"))


def row_task(row: dict[str, Any], image: Image) -> Task:
    """The task of a row (Broken where a column is missing or of another type)."""
    texts = {field: _text(row, column) for field, column in COLUMNS.items()}
    return Task(
        image=image,
        fail_to_pass=_tests(row, "FAIL_TO_PASS"),
        pass_to_pass=_tests(row, "PASS_TO_PASS"),
        eval_type=str(row.get("eval_type") or "pass_and_fail"),
        split=str(row.get("split") or "test"),
        hints=str(row.get("hints_text") or ""),
        test_seconds=_seconds(row),
        files=patch_paths(texts["gold_patch"]),
        requirements=_requirements(row),
        **texts,
        **{name: _text(row, name) for name in _META},
    )


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


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise Broken(f"{key}: missing")
    if not isinstance(value, str | int | float):
        raise Broken(f"{key}: text is needed, found {type(value).__name__}")
    return str(value)


def _tests(row: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of test ids, or one as JSON text (the Python sets of SWE-bench)."""
    value = row.get(key)
    if isinstance(value, str):
        value = _json_list(value, key)
    if not isinstance(value, list) or not all(isinstance(test, str) for test in value):
        raise Broken(f"{key}: a list of test ids is needed")
    return tuple(value)


def _json_list(text: str, key: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Broken(f"{key}: malformed JSON ({error})") from None
