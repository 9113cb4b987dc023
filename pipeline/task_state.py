"""How far an episode has come with its task, by rules from its tool trace: reproduced, localised, edited, tested, submitted, and what it
should have left alone. Pure: recorded turns in, the first turn of each out; a mark that is set stays where it is.

For people and metrics only, never a reward: what is rewarded turn by turn is learned instead of the outcome. Not covered: what a command
does to files that its text does not name; a test that is run by a program of its own; whether a failure that it saw is the reported one.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from sandbox import WORKDIR

from .redo import read_ending
from .types import Episode, Turn

TEST_FILE = re.compile(r"(^|/)(tests?/|test_[^/]*$|[^/]*_test\.py$|conftest\.py$)")
TESTS = re.compile(r"\b(pytest|py\.test|unittest|tox|nox|nosetests|runtests\.py|manage\.py test|npm test|go test|cargo test|make test)\b")
RUNS = re.compile(r"\b(python[\d.]*|pytest|node|go run|cargo run)\b")
FAILS = re.compile(r"Traceback \(most recent call last\)|\bFAILED\b|\b\w*Error\b|\b[1-9]\d* failed\b")
MISSING = re.compile(r"No module named pytest|command not found|No such file or directory|file or directory not found|no tests ran")


@dataclass(frozen=True, slots=True)
class TaskState:
    """Of each the turn, from 1, at which it was first so; None: not so."""

    reproduced: int | None = None
    """A program or test was run and failed, before anything was changed."""
    localised: int | None = None
    """A file that the gold patch changes was shown or named by a command that worked."""
    edited: int | None = None
    tested: int | None = None
    """Tests were run after a change, whatever they said."""
    submitted: int | None = None
    tests_edited: int | None = None
    """The constraint is broken: a test file was changed, or made."""


MARKS = tuple(field.name for field in fields(TaskState))


def follow(turns: Sequence[Turn], files: Sequence[str] = ()) -> tuple[TaskState, ...]:
    """The state after each turn; `files`: those that the gold patch changes."""
    states: list[TaskState] = []
    tree = ""
    for number, turn in enumerate(turns, start=1):
        before = states[-1] if states else TaskState()
        states.append(mark(before, number, find_marks(turn, before, tree or turn.anchor, files)))
        tree = turn.tree or tree
    return tuple(states)


def conclude(episode: Episode, files: Sequence[str] = ()) -> TaskState:
    """At the end: what its patch shows as well was so at its last turn at the latest."""
    turns = episode.played
    state = follow(turns, files)[-1] if turns else TaskState()
    changed = [line.removeprefix("+++ b/") for line in episode.patch.splitlines() if line.startswith("+++ b/")]
    shown = ["edited"] if episode.patch else []
    return mark(state, len(turns), [*shown, *(["tests_edited"] if any(map(TEST_FILE.search, changed)) else [])])


def mark(state: TaskState, number: int, found: Iterable[str]) -> TaskState:
    """The state with these marks set at a turn; those that are set stay."""
    return replace(state, **{name: number for name in found if getattr(state, name) is None})


def find_marks(turn: Turn, before: TaskState, tree: str, files: Sequence[str]) -> list[str]:
    """What a turn shows by itself; `tree`: hash of the working tree before it, "" where it is not known."""
    call = turn.call
    if call is None:
        return []
    match call.name:
        case "bash":
            return _read_command(turn, call.arguments["command"], before, tree, files)
        case "view":
            worked = not turn.observation.startswith("error: ")
            return ["localised"] if worked and _inside(call.arguments["path"]) in files else []
        case "edit":
            path = _inside(call.arguments["path"])
            found = ["edited", *(["localised"] if path in files else []), *(["tests_edited"] if TEST_FILE.search(path) else [])]
            return found if turn.observation.startswith(("edited ", "created ")) else []
        case "submit":
            return ["submitted"]
        case _:
            return []


def _read_command(turn: Turn, command: str, before: TaskState, tree: str, files: Sequence[str]) -> list[str]:
    ending = read_ending(turn.observation)
    ran = bool(TESTS.search(command)) and not MISSING.search(turn.observation)
    failed = ending not in ("0", "timeout") or bool(FAILS.search(turn.observation))
    found = {
        "reproduced": before.edited is None and failed and (ran or bool(RUNS.search(command))) and not MISSING.search(turn.observation),
        "localised": ending == "0" and any(_names(command, file) for file in files),
        "edited": bool(tree and turn.tree and tree != turn.tree),
        "tested": ran and before.edited is not None,
    }
    return [name for name, there in found.items() if there]


def _inside(path: str) -> str:
    """A path as a patch names it."""
    return posixpath.relpath(posixpath.normpath(posixpath.join(WORKDIR, path)), WORKDIR)


def _names(command: str, file: str) -> bool:
    return re.search(rf"(?<![\w./-])(?:\./|{re.escape(WORKDIR)}/)?{re.escape(file)}(?![\w/])", command) is not None


def measure_states(episodes: Sequence[tuple[Episode, Sequence[str]]]) -> dict[str, float]:
    """ledger/MARK: the share of episodes with it, of those with turns; `localised` only of tasks whose gold files are known."""
    found: dict[str, float] = {}
    for name in MARKS:
        reached = [
            getattr(conclude(episode, files), name) is not None
            for episode, files in episodes
            if episode.turns and (files or name != "localised")
        ]
        if reached:
            found[f"ledger/{name}"] = sum(reached) / len(reached)
    return found
