"""What to solve and how it is graded; knows a sandbox, no model."""

from typing import TYPE_CHECKING

from .artefacts import read_verdicts, regrade, write_logs, write_report
from .audit import Auditor
from .base import Evidence, Outcome, Prediction, Suite, Task, Verdict
from .environments import prepare_suite
from .filters import Filter, choose, language, patch_lines, repository
from .grade import grade, grade_untouched
from .predictions import load_predictions, write_predictions
from .sealing import seal_tasks
from .store import keep_tasks, load_suite, write_task
from .toy import toy_suite
from .validate import Validation, validate_suite

if TYPE_CHECKING:
    from .build import build_suite

__all__ = [
    "Auditor",
    "Evidence",
    "Filter",
    "Outcome",
    "Prediction",
    "Suite",
    "Task",
    "Validation",
    "Verdict",
    "build_suite",
    "choose",
    "grade",
    "grade_untouched",
    "keep_tasks",
    "language",
    "load_predictions",
    "load_suite",
    "patch_lines",
    "prepare_suite",
    "read_verdicts",
    "regrade",
    "repository",
    "seal_tasks",
    "toy_suite",
    "validate_suite",
    "write_logs",
    "write_predictions",
    "write_report",
    "write_task",
]


def __getattr__(name: str) -> object:
    """build_suite on first use: its recipes need pydantic, which `greengrad --help` does not wait for."""
    if name != "build_suite":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .build import build_suite

    return build_suite
