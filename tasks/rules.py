"""How each family's own grader decides, as one pure function of the statuses of tests; knows no log and no sandbox."""

from collections.abc import Collection, Mapping
from typing import assert_never

from .base import Rule

GOOD = frozenset({"PASSED", "XFAIL"})
BAD = frozenset({"FAILED", "ERROR"})


def is_resolved(
    rule: Rule, statuses: Mapping[str, str], fail_to_pass: Collection[str], pass_to_pass: Collection[str], expected: Mapping[str, str]
) -> bool:
    """Whether these statuses resolve a task; `expected` is read by SAME_STATUSES alone.

    OFFICIAL is decided by the official functions on the log (swebench.py), of which this is the rule without their tolerance for ids
    that were cut short; ValueError for it, so that it is never decided here by mistake.
    """
    match rule:
        case Rule.OFFICIAL:
            raise ValueError("the official rule is decided by the official functions")
        case Rule.ALL_PASS:
            return all(statuses.get(test) in GOOD for test in (*fail_to_pass, *pass_to_pass))
        case Rule.PASSED_SET:
            return {test for test, status in statuses.items() if status in GOOD} == {*fail_to_pass, *pass_to_pass}
        case Rule.SAME_STATUSES:
            return bool(expected) and dict(statuses) == dict(expected)
        case Rule.NO_FAILURE:
            fixed = all(statuses.get(test) in GOOD for test in fail_to_pass)
            return fixed and not any(statuses.get(test) in BAD for test in pass_to_pass)
        case Rule.REWARD:
            return bool(statuses) and all(status in GOOD for status in statuses.values())
        case _:
            assert_never(rule)
