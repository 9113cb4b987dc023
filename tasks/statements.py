"""Other words for the statement of a task on disk: what may not be in them, and how they are put there; knows no model."""

import os
import re
from pathlib import Path, PurePosixPath

from . import lineage
from .base import Task
from .behaviour import fix_lines, tells

MAX_CHARS = 2500
STATEMENT = "problem_statement.md"


def objection(suite: Path, task: Task, text: str) -> str:
    """Why a text may not stand for the task's statement; "" where it may: no fix, no file, no function but those already told."""
    if not 0 < len(text.strip()) <= MAX_CHARS:
        return f"it is empty or longer than {MAX_CHARS} characters"
    if tells(text, fix_lines(task.gold_patch)):
        return "it holds a line of the fix"
    tests = {test.split("::")[0] for test in task.fail_to_pass}
    files = {PurePosixPath(path).name for path in (*task.files, *tests)}
    names = {test.split("::")[-1].split("[")[0] for test in task.fail_to_pass} | {_function(suite, task)}
    told = [name for name in sorted(files | names - {""}) if _says(text, name) and not _says(task.problem_statement, name)]
    return f"it names {told[0]}" if told else ""


def restated(suite: Path) -> dict[str, str]:
    """Instance id -> "" or why its own statement stayed, for every task that was tried."""
    return {entry["instance_id"]: entry["why"] for entry in lineage.entries(suite) if entry.get("step") == "restate"}


def restate(suite: Path, task: Task, text: str, why: str = "") -> None:
    """Put a text in the place of the statement, and the old one into lineage.jsonl; with `why` the old one stays, and that is noted."""
    if not why:
        path = suite / "tasks" / task.instance_id / STATEMENT
        path.with_suffix(".partial").write_text(text.strip() + "\n", encoding="utf-8")
        os.replace(path.with_suffix(".partial"), path)
    lineage.append(suite, {"step": "restate", "instance_id": task.instance_id, "why": why, "statement": task.problem_statement})


def _function(suite: Path, task: Task) -> str:
    """The name of the function that has the bug."""
    entries = (entry for entry in lineage.entries(suite) if entry.get("instance_id") == task.instance_id)
    return next((str(entry["function"]).rpartition(".")[2] for entry in entries if "function" in entry), "")


def _says(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
