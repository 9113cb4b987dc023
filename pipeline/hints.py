"""A turn and what came of it -> how good it was, and a hint for it, by rules; knows texts, nothing of tokens, models or weights.

What a run shows is the fault of the edit before it: a policy that is blamed for looking stops to look. So a turn is blamed for what it did
itself (a malformed answer, an edit that found no place, a file that no longer parses, a command that broke), and the hint that a failing
test, or an error raised right after an edit, gives goes to the edit.
Not covered: a command that fails on purpose, because it reproduces the bug, is blamed like any other; output of other test tools than
pytest is read by its exit code alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tasks import Task

from .probe import COUNT
from .types import Turn

ENDING = re.compile(r"\[(?:exit code (-?\d+).*|stopped after .*)\]")
TRACEBACK = "Traceback (most recent call last):"
RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Warning)\b.*", re.MULTILINE)
SYNTAX = re.compile(r"^(?:E\s+)?((?:SyntaxError|IndentationError|TabError): .*)", re.MULTILINE)
ASSERTED = re.compile(r"(?:^E {2,}+(?!\[ *\d+%\]).*\n?)+", re.MULTILINE)
"""The first block of lines in which pytest explains a failure."""
UNPARSED = "warning: the file does not parse now"

WINDOW = 18
"""Characters of a longer secret line that are enough to know it by, white space and quotes not counted."""
SHORTEST = 8
"""Characters, and ..."""
WORDS = 3
"""... different words that a line has which is not trivially common."""


def rate_turn(turns: Sequence[Turn], index: int) -> int:
    """r of a turn, +1, 0 or -1: the visible tests' change where it is known and is one, else -1 for what the turn did wrong itself.

    >>> from pipeline.types import Completion
    >>> rate_turn([Turn((), Completion((), (), "", 0, True), None, "Format error: no block")], 0)
    -1
    """
    before, after = (one.passed for one in (turns[index], turns[min(index + 1, len(turns) - 1)]))
    if before is not None and after is not None and after != before:
        return 1 if after > before else -1
    return -1 if find_fault(turns, index) else 0


def read_hint(turns: Sequence[Turn], index: int) -> str:
    """What the state after a turn says it should have done otherwise; "" where it says nothing, and for the last turn, which has none."""
    if index == len(turns) - 1:
        return ""
    return find_fault(turns, index) or (find_failure(turns[index + 1]) if _edits(turns[index]) else "")


def find_fault(turns: Sequence[Turn], index: int) -> str:
    """What a turn itself did wrong, in the words of its observation; "" where nothing."""
    turn = turns[index]
    if turn.call is None:
        return _first_line(turn.observation)
    if turn.call.name in ("edit", "view"):
        return _find_refusal(turn.observation)
    if not _runs(turn) or _count(turn.observation) is not None:
        return ""
    if index and _edits(turns[index - 1]) and find_failure(turn):
        return ""  # it tried the edit
    return _broken(turn.observation)


def find_failure(turn: Turn) -> str:
    """What a run of tests, or of a program, says of the code: the first failing assertion, or the error it raised; "" where nothing."""
    seen = turn.observation
    if not _runs(turn) or not (_fails(seen) if _count(seen) is None else _count(seen)):
        return ""
    if syntax := SYNTAX.search(seen):
        return syntax[1]
    if explained := ASSERTED.search(seen):
        return "\n".join(line[1:].strip() for line in explained[0].splitlines()).strip()
    return _raised(seen) or next((line for line in reversed(seen.splitlines()) if COUNT.search(line)), "")


def _find_refusal(seen: str) -> str:
    if seen.startswith("error: "):
        return _first_line(seen)
    return next((line for line in seen.splitlines() if line.startswith(UNPARSED)), "")


def _fails(seen: str) -> bool:
    """Of a command: a limit ended it, or its exit code is not 0. A 1 without a word is how grep and diff say no."""
    *output, last = seen.splitlines() or [""]
    ending = ENDING.fullmatch(last)
    return ending is not None and ending[1] != "0" and not (ending[1] == "1" and not output)


def _broken(seen: str) -> str:
    """Of a command that ran no tests: the error that ended it."""
    if not _fails(seen):
        return ""
    if syntax := SYNTAX.search(seen):
        return syntax[1]
    return _raised(seen) or " ".join(seen.splitlines()[-2:])


def _raised(seen: str) -> str:
    """The line in which a traceback ends: that of the last one."""
    _, found, rest = seen.rpartition(TRACEBACK)
    raised = RAISED.search(rest) if found else None
    return raised[0] if raised else ""


def _count(seen: str) -> int | None:
    """Failed tests and errors of the last summary in an output; None where there is none."""
    counted = next((found for line in reversed(seen.splitlines()) if (found := COUNT.findall(line))), None)
    return None if counted is None else sum(int(count) for count, what in counted if what != "passed")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _edits(turn: Turn) -> bool:
    return turn.call is not None and turn.call.name == "edit"


def _runs(turn: Turn) -> bool:
    return turn.call is not None and turn.call.name == "bash"


# --- what no hint may say ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the gold patch and the hidden tests add to a repository, line by line."""

    lines: frozenset[str]
    """Short ones, whole, bare."""
    windows: frozenset[str]
    """All pieces of WINDOW characters of the longer ones: a hint may hold a part."""


def find_secrets(task: Task) -> Secrets:
    """Lines that are added, without their indentation; those that are trivially common (`return None`) are none."""
    added = [line[1:] for line in [*task.gold_patch.splitlines(), *task.test_patch.splitlines()] if line.startswith("+")]
    lines = [_bare(line) for line in map(str.strip, added) if not line.startswith("++") and not is_common(line)]
    short = frozenset(line for line in lines if len(line) <= WINDOW)
    return Secrets(short, frozenset(piece for line in lines if len(line) > WINDOW for piece in _windows(line)))


def is_common(line: str) -> bool:
    """Too short, or too few words, to come from anywhere in particular."""
    return len(line) < SHORTEST or len(set(re.findall(r"\w+", line))) < WORDS


def leaks(hint: str, secrets: Secrets, seen: str) -> bool:
    """Whether a hint says something of the secrets that `seen`, what the agent itself had seen before the turn, does not."""
    told = _bare(hint)
    shared = {line for line in secrets.lines if line in told} | (_windows(told) & secrets.windows)
    known = _bare(seen) if shared else ""
    return any(piece not in known for piece in shared)


def _windows(text: str) -> frozenset[str]:
    return frozenset(text[start : start + WINDOW] for start in range(len(text) - WINDOW + 1))


def _bare(text: str) -> str:
    """Without white space, quotes and backslashes: a traceback shows the same code otherwise than a patch does."""
    return re.sub(r"""[\s'"`\\]+""", "", text)
