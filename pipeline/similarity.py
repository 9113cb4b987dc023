"""How like an expert's action another one is: the reward of SRL (arXiv:2510.25992); pure functions over text, knows no model.

r = 2M / (|S1| + |S2|), difflib's SequenceMatcher ratio of the two actions as text, computed by cydifflib (the same numbers, 20 to 35
times as fast). Always without difflib's `autojunk`: from 200 characters on it takes frequent characters for junk, and on code the ratio
falls from about .89 to .2 - .5. The ratio is not symmetric: the policy's action is S1, the expert's S2, everywhere. Two shell commands
that have nothing to do with each other share a third of their characters, so another tool than the expert's scores 0 before any text is
compared. The cost grows with the product of the lengths, so that only the first LONGEST characters of each are compared.
"""

from cydifflib import SequenceMatcher

from .action import ActionFormat, FormatError, render
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


def reward_action(call: ToolCall | FormatError, expert: ToolCall, action_format: ActionFormat = "fenced") -> float:
    """-1 without a valid action, 0 for another tool, else the similarity of the rendered actions; the thought before is not looked at."""
    if isinstance(call, FormatError):
        return MALFORMED
    if call.name != expert.name:
        return 0.0
    return similarity(render(call, action_format), render(expert, action_format))
