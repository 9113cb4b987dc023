"""What to solve and how it is graded; knows a sandbox, no model."""

import importlib
from typing import TYPE_CHECKING

from .artefacts import read_verdicts, regrade, write_logs, write_report
from .audit import Auditor
from .base import Evidence, Outcome, Prediction, Suite, Task, Verdict
from .drafts import file_name, new_folder
from .environments import prepare_suite
from .filters import Filter, choose, language, patch_lines, repository
from .grade import grade, grade_untouched
from .predictions import load_predictions, write_predictions
from .sealing import seal_tasks
from .sources import read_rows
from .store import keep_tasks, load_suite, write_task
from .toy import toy_suite
from .validate import Validation, validate_suite

if TYPE_CHECKING:
    from .behaviour import fix_lines, tells
    from .build import build_suite
    from .export import TasksExported, export_suite
    from .mine_statement import load_issues
    from .mine_work import Claim, mine_suite
    from .mutate_work import mutate_suite
    from .prospect import Request
    from .statements import objection, restate, restated

__all__ = [
    "Auditor",
    "Claim",
    "Evidence",
    "Filter",
    "Outcome",
    "Prediction",
    "Request",
    "Suite",
    "Task",
    "TasksExported",
    "Validation",
    "Verdict",
    "build_suite",
    "choose",
    "export_suite",
    "file_name",
    "fix_lines",
    "grade",
    "grade_untouched",
    "keep_tasks",
    "language",
    "load_issues",
    "load_predictions",
    "load_suite",
    "mine_suite",
    "mutate_suite",
    "new_folder",
    "objection",
    "patch_lines",
    "prepare_suite",
    "read_rows",
    "read_verdicts",
    "regrade",
    "repository",
    "restate",
    "restated",
    "seal_tasks",
    "tells",
    "toy_suite",
    "validate_suite",
    "write_logs",
    "write_predictions",
    "write_report",
    "write_task",
]


_LATE = {
    "fix_lines": "behaviour",
    "tells": "behaviour",
    "build_suite": "build",
    "export_suite": "export",
    "TasksExported": "export",
    "mine_suite": "mine_work",
    "Claim": "mine_work",
    "load_issues": "mine_statement",
    "mutate_suite": "mutate_work",
    "Request": "prospect",
    "objection": "statements",
    "restate": "statements",
    "restated": "statements",
}
"""Name -> its module, imported on first use: they need pydantic, GitPython or packaging, which `greengrad --help` does not wait for."""


def __getattr__(name: str) -> object:
    """What is imported on first use."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
