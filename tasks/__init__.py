"""What to solve and how it is graded; knows a sandbox, no model."""

from .base import Outcome, Suite, Task, Verdict

__all__ = ["Outcome", "Suite", "Task", "Verdict"]
