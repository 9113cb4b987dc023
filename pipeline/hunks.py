"""A unified diff -> small edits (old, new), each unique in its file at its turn; pure, knows nothing of tasks or sandboxes.

Left out (None is returned, and the caller applies the patch whole): new, deleted, renamed and binary files, modes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .edit import Edited, replace_once

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_UNUSUAL = re.compile(r"^(new file|deleted file|old mode|new mode|rename|copy|GIT binary|Binary files|similarity)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Change:
    """Lines first .. first + len(old) - 1 (0-based, of the base file) become `new`; lines keep their newline."""

    path: str
    first: int
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """What the edit tool is asked to do."""

    path: str
    old: str
    new: str


def changes_of(patch: str) -> list[Change] | None:
    """The runs of changed lines of every file, in order; None where the patch does more than change lines of files."""
    changes: list[Change] = []
    for section in re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE):
        header, at, body = section.partition("\n@@ ")
        names = re.findall(r"^(?:---|\+\+\+) (?:[ab]/)?([^\t\n]+)", header, re.MULTILINE)
        if not section.strip():
            continue
        if not at or _UNUSUAL.search(header) or len(names) != 2 or names[0] != names[1] or names[0].startswith('"'):
            return None
        changes += _read_hunks(names[0], re.findall(r"[^\n]*\n|[^\n]+", "@@ " + body))
    return changes


def _read_hunks(path: str, lines: list[str]) -> Iterator[Change]:
    at, old, new = 0, list[str](), list[str]()
    marked = _join_no_newline(lines)
    for line in [*marked, "@@"]:
        if line[:1] == "-":
            old.append(line[1:])
        elif line[:1] == "+":
            new.append(line[1:])
        else:
            if old or new:
                yield Change(path, at, tuple(old), tuple(new))
            at += len(old) + (line[:1] in " \n")
            old, new = [], []
            if match := _HUNK.match(line):
                at = int(match[1]) - (0 if match[2] == "0" else 1)


def _join_no_newline(lines: list[str]) -> list[str]:
    """Without the "\\ No newline at end of file" lines, and the lines before them without their newline."""
    kept: list[str] = []
    for line in lines:
        if line.startswith("\\"):
            kept[-1] = kept[-1].removesuffix("\n")
        else:
            kept.append(line)
    return kept


def edits_of(changes: list[Change], read: Callable[[str], str | None]) -> list[Edit] | None:
    """One edit per change, with as few lines as make its old text unique; None where a change does not fit the files."""
    texts: dict[str, list[str]] = {}
    grown: dict[str, int] = {}
    edits: list[Edit] = []
    for change in changes:
        if change.path not in texts:
            text = read(change.path)
            if text is None:
                return None
            texts[change.path] = re.findall(r"[^\n]*\n|[^\n]+", text)
        lines, first = texts[change.path], change.first + grown.get(change.path, 0)
        if tuple(lines[first : first + len(change.old)]) != change.old:
            return None
        edit = _shortest(lines, first, change)
        if edit is None:
            return None
        edits.append(edit)
        lines[first : first + len(change.old)] = change.new
        grown[change.path] = grown.get(change.path, 0) + len(change.new) - len(change.old)
    return edits


def _shortest(lines: list[str], first: int, change: Change) -> Edit | None:
    """The edit with the fewest lines around the change; an insertion or deletion takes at least one along."""
    last = first + len(change.old)
    low, high = first, last
    expected = "".join([*lines[:first], *change.new, *lines[last:]])
    while True:
        old = "".join(lines[low:high])
        new = "".join([*lines[low:first], *change.new, *lines[last:high]])
        if old.endswith("\n") and new.endswith("\n"):
            old, new = old[:-1], new[:-1]
        whole = low == 0 and high >= len(lines)
        if old and (new or whole):
            done = replace_once("".join(lines), old, new)
            if isinstance(done, Edited) and done.text == expected:
                return Edit(change.path, old, new)
        if whole:
            return None
        if low > 0 and (first - low <= high - last or high >= len(lines)):
            low -= 1
        else:
            high += 1
