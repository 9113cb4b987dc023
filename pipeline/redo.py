"""Recorded turns, carried out again in a fresh machine, and the first thing that comes out differently; knows no policy and no grade.

Compared are what was seen before an action (rollout.anchors, rollout.visible_tests), the exit code, the observation and, where it was
recorded, the hash of the tree after the action. What differs from run to run by its nature is made equal by VOLATILE and by nothing else.
Left out: the order in which a program prints sets, hashes that Python salts (PYTHONHASHSEED), whatever a command draws at random.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sandbox import ResourceExhausted, Sandbox

from .action import ASK_USER
from .config import RolloutConfig
from .probe import NOT_READ, hash_tree, look
from .tools import Shown, run_tool
from .types import Turn

USED_UP = "[the machine was used up: "
"""How the observation of an agent's last action begins, where it ended its own machine."""

MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
VOLATILE = (
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|UTC|[+-]\d\d:?\d\d))?", "<time>"),  # 2026-11-25 10:00:00.123 +0000
    (rf"\b(\w{{3}} )?{MONTH} +\d{{1,2}} +\d\d:\d\d(:\d\d)?( [AP]M)?( [A-Z]{{3,4}})?( \d{{4}})?", "<time>"),  # date, ls -l
    (r"\b\d{1,2}:\d\d:\d\d(\.\d+)?\b", "<time>"),
    (r"\b1[6-9]\d{8}(\.\d+)?\b", "<time>"),  # date +%s
    (r"\b(\d+m)?\d+\.\d+ ?(s|ms|us|µs|ns|sec|secs|seconds)\b", "<seconds>"),  # pytest, time, timeit
    (r"\[stopped after \d+ s:", "[stopped after <seconds>:"),
    (r"\b0x[0-9a-f]{6,}\b", "<address>"),
    (r"\btmp[a-z0-9_]{8}\b|\btmp\.\w{10}\b", "<temporary>"),  # Python's tempfile, mktemp
    (r"\bpytest-of-\w+/pytest-\d+", "<temporary>"),
    (r"(?i)\b(pid[ =:]+|/proc/)\d+", r"\1<pid>"),
    (r"(?m)^\[\d+\] \d+$", "[<job>] <pid>"),  # a job in the background
)
"""(pattern, what stands for it): time stamps, durations, addresses, temporary names, process numbers."""
_PATTERNS = tuple((re.compile(pattern), mark) for pattern, mark in VOLATILE)
_CUT = re.compile(r"\n\[\.\.\. \d+ (?:characters|bytes) left out \.\.\.\]\n")
_ENDING = re.compile(r"\[exit code (\d+)[\]:][^\n]*\Z|\[stopped after ")
EDGE = 40
"""Characters on each side of a cut that are not compared: a duration of another length moves the cut."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference between the record and what happened now."""

    turn: int
    """From 1; 0: not of a turn."""
    what: str
    """tree before, visible tests, exit code, observation, tree, patch, verdict."""
    recorded: str
    found: str

    def __str__(self) -> str:
        where = f"turn {self.turn}: " if self.turn else ""
        return f"{where}{self.what}: recorded {_short(self.recorded)}, now {_short(self.found)}"


async def redo(sandbox: Sandbox, turns: Sequence[Turn], rollout: RolloutConfig, seconds: float) -> Divergence | None:
    """Carry out the actions of the turns again, up to the first difference; each command within `seconds`.

    ResourceExhausted where the record ends with it too: the agent's last action has used up its machine, as it did then.
    """
    for number, turn in enumerate(turns, start=1):
        try:
            found = await _redo_turn(sandbox, turn, rollout, seconds, number)
        except ResourceExhausted as failure:
            if turn.observation.startswith(USED_UP):
                raise
            return Divergence(number, "observation", turn.observation, f"{USED_UP}{failure}]")
        if found is not None:
            return Divergence(number, *found)
    return None


async def _redo_turn(sandbox: Sandbox, turn: Turn, rollout: RolloutConfig, seconds: float, number: int) -> tuple[str, str, str] | None:
    seen = await look(sandbox, rollout, seconds, first=number == 1)
    if turn.anchor and seen.anchor and not _same_tree(turn.anchor, seen.anchor):
        return "tree before", turn.anchor, seen.anchor
    if turn.passed is not None and seen.passed is not None and turn.passed != seen.passed:
        return "visible tests", str(turn.passed), str(seen.passed)
    if turn.call is None or turn.call.name == ASK_USER:  # what a user said is on record, and no one is asked again
        return None
    limit = min(seconds, max(turn.seconds_tool, 1.0)) if "[stopped after " in turn.observation else seconds
    observation = await run_tool(sandbox, turn.call, Shown(rollout.observation_chars, limit))
    if read_ending(turn.observation) != read_ending(observation):
        return "exit code", read_ending(turn.observation), read_ending(observation)
    if not same_text(turn.observation, observation):
        return "observation", *_around_difference(turn.observation, observation)
    tree = await hash_tree(sandbox, seconds) if turn.tree else ""
    return None if _same_tree(turn.tree, tree) else ("tree", turn.tree, tree)


def _same_tree(recorded: str, found: str) -> bool:
    """Equal hashes; two trees that could not be read are not told apart."""
    return recorded == found or (recorded.startswith(NOT_READ) and found.startswith(NOT_READ))


def read_ending(observation: str) -> str:
    """The exit code that an observation of a command ends with; "timeout" for one that was stopped, "" for other tools."""
    found = _ENDING.search(observation)
    return "" if found is None else found[1] or "timeout"


def same_text(recorded: str, found: str) -> bool:
    """Whether two observations are equal but for what VOLATILE names; beside a cut, EDGE characters are not looked at.

    >>> same_text("3 passed in 0.12s", "3 passed in 1.4s")
    True
    """
    if recorded == found:
        return True
    old, new = _CUT.split(recorded), _CUT.split(found)
    if len(old) != len(new):
        return False
    pairs = list(zip(map(normalise, old), map(normalise, new), strict=True))
    return all(_same_part(a, b, place > 0, place < len(old) - 1) for place, (a, b) in enumerate(pairs))


def _same_part(a: str, b: str, cut_before: bool, cut_after: bool) -> bool:
    """One piece between cuts: from its start where that is whole, else from its end."""
    if not cut_before and not cut_after:
        return a == b
    size = max(min(len(a), len(b)) - EDGE, 0)
    if cut_before and cut_after:  # neither end is where it was
        return abs(len(a) - len(b)) <= EDGE
    return a[:size] == b[:size] if cut_after else a[len(a) - size :] == b[len(b) - size :]


def normalise(text: str) -> str:
    """The text with everything that VOLATILE names replaced."""
    for pattern, mark in _PATTERNS:
        text = pattern.sub(mark, text)
    return text


def _around_difference(recorded: str, found: str) -> tuple[str, str]:
    """Both from shortly before the first character that differs, normalised."""
    a, b = normalise(recorded), normalise(found)
    start = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[max(start - 30, 0) :], b[max(start - 30, 0) :]


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}...")
