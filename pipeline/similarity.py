"""How like an expert's action another one is: the reward of SRL (arXiv:2510.25992); pure functions over text, knows no model.

r = 2M / (|S1| + |S2|), difflib's SequenceMatcher ratio of the two actions as text. Always without difflib's `autojunk`: from 200
characters on it takes frequent characters for junk, and on code the ratio falls from about .89 to .2 - .5. The ratio is not symmetric: the
policy's action is S1, the expert's S2, everywhere. Two shell commands that have nothing to do with each other share a third of their
characters, so another tool than the expert's scores 0 before any text is compared. Only arguments are compared: fences, markers and JSON
keys are the same in all actions of a tool, and with them `ls` would be .83 like `pwd` (.97 in JSON).

M is counted with sets of places as the bits of an integer: the same number, 3 to 23 times as fast as difflib on code, and without its
worst case (texts of few letters that repeat, minutes for a pair). Only the first LONGEST characters of each count.
"""

from collections import defaultdict
from collections.abc import Sequence

from .action import FormatError
from .types import ToolCall

LONGEST = 4000
"""Characters of an action that are compared: some 10 ms for a pair of that length, 1 ms for one of 1,000 (scripts/bench/similarity.py)."""
MALFORMED = -1.0
"""The reward of an answer without exactly one valid action."""
Window = tuple[int, int, int, int]
"""From and to (exclusive) in the one text, from and to in the other."""


def similarity(action: str, expert: str) -> float:
    """The ratio of two texts, 0 to 1; two empty ones are the same.

    >>> similarity("python -m pytest -q", "python -m pytest -x")
    0.9473684210526315
    """
    one, other = action[:LONGEST], expert[:LONGEST]
    return 2.0 * count_matched(one, other) / (len(one) + len(other)) if one or other else 1.0


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


# --- M, as Ratcliff and Obershelp count it and difflib does ----------------------------------------------------


def count_matched(one: str, other: str) -> int:
    """M: characters of the longest match, the first of several, and of those found likewise before and after it."""
    places = find_places(one, other)
    matched, left = 0, [((0, len(one), 0, len(other)), min(len(one), len(other)))]
    while left:
        (i, end_i, j, end_j), most = left.pop()
        at_i, at_j, length = longest_match(places, (i, end_i, j, end_j), min(most, end_i - i, end_j - j))
        if length:
            matched += length
            left.append(((i, at_i, j, at_j), length - 1))  # as long a one would have been found first
            left.append(((at_i + length, end_i, at_j + length, end_j), length))
    return matched


def find_places(one: str, other: str) -> list[list[int]]:
    """[p][i]: the places j, as bits, with other[j : j + 2**p] == one[i : i + 2**p]; as many p as have any."""
    of_letter: dict[str, int] = defaultdict(int)
    for place, letter in enumerate(other):
        of_letter[letter] |= 1 << place
    found = list[list[int]]()
    row, width = [of_letter.get(letter, 0) for letter in one], 1
    while any(row):
        found.append(row)
        row = [here & (there >> width) for here, there in zip(row, row[width:], strict=False)]
        width *= 2
    return found


def longest_match(places: Sequence[Sequence[int]], window: Window, most: int) -> tuple[int, int, int]:
    """Where it is in both texts, and its length, which is known to be `most` or less; 0 where they share nothing.

    `most` is tried first: in texts that repeat, the next match is as long as the last.
    """
    most = min(most, 2 ** len(places) - 1)
    if most > 0 and (found := first_match(places, window, most)):
        return *found, most
    best, length = (window[0], window[2]), 0
    while length < most - 1:
        middle = (length + most) // 2
        if found := first_match(places, window, middle):
            best, length = found, middle
        else:
            most = middle
    return *best, length


def first_match(places: Sequence[Sequence[int]], window: Window, length: int) -> tuple[int, int] | None:
    """The first place in the one text, and the first to that in the other, from which `length` characters are the same."""
    i, end_i, j, end_j = window
    power = length.bit_length() - 1
    row, apart, inside = places[power], length - 2**power, (1 << (end_j - j - length + 1)) - 1
    for place in range(i, end_i - length + 1):
        if (found := row[place]) and (found := (found & row[place + apart] >> apart) >> j & inside):
            return place, j + (found & -found).bit_length() - 1
    return None
