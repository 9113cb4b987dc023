"""A patch that undoes a patch, as text (for suites whose patch plants the bug); knows nothing of git, tasks or sandboxes."""

import re

from .patches import split_lines, split_patch

_HUNK = re.compile(r"@@ -(\S+) \+(\S+) @@(.*)", re.DOTALL)
_SWAPS = (
    ("new file mode ", "deleted file mode "),
    ("old mode ", "new mode "),
    ("rename from ", "rename to "),
    ("--- ", "+++ "),
)


def reverse_patch(patch: str) -> str:
    """The patch that takes it back (ValueError for a binary one, which does not hold what it replaces)."""
    return "".join(_reverse_section(section.text) for section in split_patch(patch))


def _reverse_section(text: str) -> str:
    lines = split_lines(text)
    start = next((at for at, line in enumerate(lines) if _HUNK.match(line)), len(lines))
    if any(line.startswith(("GIT binary patch", "Binary files ", "copy from ")) for line in lines[:start]):
        raise ValueError(f"a binary patch or a copy cannot be reversed: {lines[0].strip()}")
    return "".join([*_reverse_head(lines[:start]), *_reverse_hunks(lines[start:])])


def _reverse_head(head: list[str]) -> list[str]:
    """Headers with their sides changed, in git's order: old mode before new mode, rename from before rename to, --- before +++."""
    found = [_reverse_header(line) for line in head]
    for first, second in zip(range(len(found)), range(1, len(found)), strict=False):
        if found[first].startswith(("new mode ", "rename to ", "+++ ")) and found[second].startswith(("old mode ", "rename from ", "--- ")):
            found[first], found[second] = found[second], found[first]
    return found


def _reverse_header(line: str) -> str:
    if match := re.match(r"index (\w+)\.\.(\w+)(.*)", line, re.DOTALL):
        return f"index {match[2]}..{match[1]}{match[3]}"
    if match := re.match(r"diff --git (a/\S+) (b/\S+)(\s*)$", line):
        return f"diff --git a/{match[2][2:]} b/{match[1][2:]}{match[3]}"
    for left, right in _SWAPS:
        for old, new in ((left, right), (right, left)):
            if line.startswith(old):
                return new + _other_side(line.removeprefix(old)) if old in ("--- ", "+++ ") else new + line.removeprefix(old)
    return line


def _other_side(name: str) -> str:
    return re.sub(r'^("?)([ab])/', lambda m: f"{m[1]}{'b' if m[2] == 'a' else 'a'}/", name)


def _reverse_hunks(lines: list[str]) -> list[str]:
    """Each run of removed and added lines, the other way round; a note on a missing newline stays with its line."""
    found: list[str] = []
    removed: list[str] = []
    added: list[str] = []
    last = found
    for line in lines:
        mark = line[:1]
        if mark == "\\":
            last.append(line)
        elif mark == "-" or mark == "+":
            last = removed if mark == "+" else added
            last.append(("-" if mark == "+" else "+") + line[1:])
        else:
            found += [*removed, *added]
            removed.clear()
            added.clear()
            match = _HUNK.match(line)
            found.append(f"@@ -{match[2]} +{match[1]} @@{match[3]}" if match else line)
            last = found
    return [*found, *removed, *added]
