"""What a fix would leave behind where it was known: files by git's id, and runs of lines; knows no tasks, and looks for nothing.

The patches are put onto the commit inside the machine, in an index and an object folder of our own: nothing of them enters the repository.
"""

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from .desk import Desk, SealError

GOLD_LINES, TEST_LINES = 3, 6
"""Telling lines of an added run: a shorter one is everyday code. Of the 6,300 changes in 1,100 rows of SWE-bench (Verified, Lite,
Multilingual) none was found in 76,000 files of other packages; with 3 for tests as well, one was."""
AROUND = 3
"""Lines of context that go with a change which is shorter than that."""
LEAST_BYTES = 16
"""A file smaller than this (an empty __init__.py) is nobody's secret."""
T = TypeVar("T")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_TRACES = """
export GIT_DIR="$PWD/.git" GIT_WORK_TREE="$PWD" GIT_INDEX_FILE="$HERE/patched" GIT_OBJECT_DIRECTORY="$HERE/objects"
export GIT_ALTERNATE_OBJECT_DIRECTORIES="$PWD/.git/objects"
mkdir -p "$GIT_OBJECT_DIRECTORY"
git read-tree "$COMMIT"
git apply --cached --whitespace=nowarn "$HERE/patch"
tree=$(git write-tree)
git diff-tree -r -z --no-renames --diff-filter=AM "$COMMIT" "$tree" > "$HERE/changed"
git diff-tree -r --no-renames --diff-filter=AM "$COMMIT" "$tree" | awk '$2 != 160000 { print $4 }' \\
    | git cat-file --batch-check='%(objectname) %(objectsize)' > "$HERE/sizes"
git diff-tree -p --no-renames --no-color --no-ext-diff --no-textconv --inter-hunk-context=0 -U3 "$COMMIT" "$tree" > "$HERE/diff"
"""


@dataclass(frozen=True, slots=True)
class Secret:
    """What an agent must not find, and the commit that it starts from."""

    base_commit: str
    gold_patch: str
    test_patch: str


@dataclass(frozen=True, slots=True)
class Traces:
    """What a secret would leave behind."""

    blobs: tuple[tuple[str, int, str], ...]
    """(git's id, bytes, path) of each file as a patch leaves it."""
    passages: tuple[str, ...]
    """Runs of lines, their bytes as latin-1."""
    added: tuple[str, ...]
    """Paths that the test patch adds."""

    def without(self, known: Container[int | str]) -> "Traces":
        """Without what the base commit holds as well (numbers of passages, ids)."""
        blobs = tuple(blob for blob in self.blobs if blob[0] not in known)
        return Traces(blobs, tuple(text for number, text in enumerate(self.passages) if number not in known), self.added)


async def find_traces(desk: Desk, secret: Secret, commits: Iterable[str]) -> Traces:
    """What gold and test patch leave behind where they are put onto these commits; SealError where one of them fits none."""
    gold = [await _patched(desk, secret.gold_patch, "gold", commit) for commit in commits if secret.gold_patch.strip()]
    test = [await _patched(desk, secret.test_patch, "test", commit) for commit in commits if secret.test_patch.strip()]
    for outcomes in (gold, test):
        if outcomes and not any(isinstance(one, Traces) for one in outcomes):
            raise next(one for one in outcomes if isinstance(one, SealError))
    found = [one for one in (*gold, *test) if isinstance(one, Traces)]
    added = [path for one in test if isinstance(one, Traces) for path in one.added]
    return Traces(_each(one.blobs for one in found), _each(one.passages for one in found), _each([added]))


async def _patched(desk: Desk, patch: str, kind: str, commit: str) -> "Traces | SealError":
    """What one patch leaves behind on one commit, or why it cannot be told."""
    await desk.write("patch", patch.encode("utf-8", "surrogateescape"))
    try:
        await desk.run(_TRACES, f"the {kind} patch does not apply, so what it leaves behind is not known", COMMIT=commit)
    except SealError as error:
        return error
    blobs, added = _changed(await desk.read("changed"), await desk.read("sizes"))
    diff = (await desk.read("diff")).decode("latin-1")
    passages = find_passages(diff, GOLD_LINES, True) if kind == "gold" else find_passages(diff, TEST_LINES, False)
    return Traces(tuple(blobs), tuple(passages), tuple(added))


def _each(parts: Iterable[Iterable[T]]) -> tuple[T, ...]:
    """All items, each once, in order."""
    return tuple(dict.fromkeys(item for part in parts for item in part))


def find_passages(diff: str, least: int, short: bool) -> Iterator[str]:
    """The added runs of a git diff with at least so many telling lines; `short`: shorter changes too, with the lines around them."""
    for after, changes in _hunks(diff):
        for start, end in changes:
            if tell(after[start:end]) >= least:
                yield "\n".join(after[start:end])
            elif short and tell(around := after[max(0, start - AROUND) : end + AROUND]) >= least:
                yield "\n".join(around)


def tell(lines: Sequence[str]) -> int:
    """How many lines say something: two letters or digits at least."""
    return sum(sum(letter.isalnum() for letter in line) >= 2 for line in lines)


def _hunks(diff: str) -> Iterator[tuple[list[str], list[tuple[int, int]]]]:
    """Of each hunk: its lines as they are afterwards, and where in them changes are (start, end)."""
    lines = iter(diff.split("\n"))
    for line in lines:
        if not (hunk := _HUNK.match(line)):
            continue
        old, new = int(hunk[1] or 1), int(hunk[2] or 1)
        after: list[str] = []
        changes: list[tuple[int, int]] = []
        changing = False
        while old > 0 or new > 0:
            mark, text = (line := next(lines))[:1], line[1:].removesuffix("\r")
            if mark == "\\":
                continue
            old, new = old - (mark in "- "), new - (mark in "+ ")
            if mark != " " and not changing:
                changes.append((len(after), len(after)))
            changing = mark != " "
            after += [text] if mark != "-" else []
            if changing:
                changes[-1] = (changes[-1][0], len(after))
        yield after, changes


def _changed(raw: bytes, sizes: bytes) -> tuple[list[tuple[str, int, str]], list[str]]:
    """(id, size, path) of what a patch writes, and the paths that are new, from git diff-tree -z and cat-file --batch-check."""
    size_of = {name: int(size) for name, size in (line.split() for line in sizes.decode().splitlines())}
    parts = raw.decode("utf-8", "surrogateescape").split("\0")[:-1]
    entries = [(head.split(), path) for head, path in zip(parts[::2], parts[1::2], strict=True)]
    blobs = [(head[3], size_of[head[3]], PurePosixPath(path).name) for head, path in entries if size_of.get(head[3], 0) >= LEAST_BYTES]
    return blobs, [path for head, path in entries if head[4] == "A"]
