"""How like an expert's action another one is: the reward of SRL (arXiv:2510.25992); pure functions over text, knows no model.

r = 2M / (|S1| + |S2|), difflib's SequenceMatcher ratio of the two actions as text, computed by cydifflib (the same numbers, 9 to 17
times as fast: scripts/bench/similarity.py). Always without difflib's `autojunk`: from 200 characters on it takes frequent characters
for junk, and on code the ratio falls from about .89 to .2 - .5. The ratio is not symmetric: the policy's action is S1, the expert's S2,
everywhere. Two shell commands that have nothing to do with each other share a third of their characters, so another tool than the
expert's scores 0 before any text is compared. Only arguments are compared: fences, markers and JSON keys are the same in all actions of
a tool, and with them `ls` would be .83 like `pwd` (.97 in JSON). The cost grows with the product of the lengths, so that only the first
LONGEST characters of each count.
"""

from cydifflib import SequenceMatcher

from .action import FormatError
from .types import ToolCall

LONGEST = 4000
"""Characters of an action that are compared: some 25 ms for a pair of that length, 1 ms for one of 1,000."""
MALFORMED = -1.0
"""The reward of an answer without exactly one valid action."""


def similarity(action: str, expert: str) -> float:
    """The ratio of two texts, 0 to 1; two empty ones are the same.

    >>> similarity("python -m pytest -q", "python -m pytest -x")
    0.9473684210526315
    """
    return float(SequenceMatcher(None, action[:LONGEST], expert[:LONGEST], autojunk=False).ratio())


def reward_action(call: ToolCall | FormatError, expert: ToolCall) -> float:
    """-1 without a valid action, 0 for another tool, else the similarity of the arguments; the thought before is not looked at."""
    if isinstance(call, FormatError):
        return MALFORMED
    if call.name != expert.name:
        return 0.0
    return similarity(join_arguments(call), join_arguments(expert))


def join_arguments(call: ToolCall) -> str:
    """What an action says beside its tool, by the names of the arguments: of an edit the new text first, which is never cut for the old.

    >>> join_arguments(ToolCall("edit", {"path": "calc.py", "old": "a - b", "new": "a + b"}))
    'a + b\\na - b\\ncalc.py'
    """
    return "\n".join(call.arguments[name] for name in sorted(call.arguments))
