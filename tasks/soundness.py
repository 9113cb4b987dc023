"""What runs of a task show about the task: pure functions of verdicts and logs; knows no sandbox."""

import re
from collections.abc import Sequence

from .base import Task, Verdict

_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|nodename nor servname|Network is unreachable|socket\.gaierror"
    r"|Max retries exceeded|ConnectionRefusedError|URLError|getaddrinfo failed|No route to host"
)
_MISSING = ("AttributeError", "ImportError", "ModuleNotFoundError", "NameError")


def wants_network(logs: Sequence[str]) -> bool:
    """Whether a log tells of a network that is not there."""
    return any(_NETWORK.search(log) for log in logs)


def fails_by_missing_names(task: Task, untouched: Verdict) -> bool:
    """Whether every FAIL_TO_PASS test fails on the untouched tree only because a name is not there yet.

    Such a task asks for names that its statement may not give (arXiv:2508.03501 leaves it out). False where a log gives no reasons.
    """
    reasons = [_reason(untouched.log, test) for test in task.fail_to_pass]
    return bool(reasons) and all(reason.startswith(_MISSING) for reason in reasons)


def _reason(log: str, test: str) -> str:
    """What pytest's summary says of a test, or of its file where that could not be imported."""
    for name in (test, test.partition("::")[0]):
        if found := re.search(rf"^(?:FAILED|ERROR) {re.escape(name)} - (?:E\s+)?(?:\w+\.)*(\w.*)$", log, re.MULTILINE):
            return found[1]
    if found := re.search(rf"^(?:ERROR|FAILED) {re.escape(test.partition('::')[0])}\b", log, re.MULTILINE):
        errors = re.findall(r"^E\s+(\w+Error)\b", log[: found.start()], re.MULTILINE)
        return errors[-1] if errors else ""
    return ""
