"""What to solve and how it is graded; knows a sandbox, no model."""

from .base import Outcome, Suite, Task, Verdict
from .grade import grade
from .store import load_suite, write_task
from .toy import toy_suite

__all__ = ["Outcome", "Suite", "Task", "Verdict", "grade", "load_suite", "toy_suite", "write_task"]
