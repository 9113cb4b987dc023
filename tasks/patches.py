"""Unified diffs as text: make them, cut them into files, leave files out; knows nothing of git, tasks or sandboxes.

Only what a person or `git diff` writes is understood: git sections ("diff --git": text, binary, renames, modes) and plain
"---/+++" pairs. Every other line (mail headers, "Index:", ed scripts, context diffs) is left out, so that what is applied
later is exactly what was looked at here.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import PurePosixPath

_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_HEADER = re.compile(r"index |(old|new|deleted file|new file) mode |(dis)?similarity |(rename|copy) (from|to) |\+\+\+ |Binary files ")
_BINARY = re.compile(r"(literal|delta) \d+\s*$|[A-Za-z][0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]+\r?\n?$|\r?\n?$")
_NAMES = ("--- ", "+++ ", "rename from ", "rename to ", "copy from ", "copy to ")
_CLEAR = re.compile(r"[A-Za-z0-9_./+@~=,-]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPE = re.compile(r"\\([0-7]{3}|.)", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True, slots=True)
class FilePatch:
    """The section of one file: every path that its headers name (old and new), and its text."""

    paths: tuple[str, ...]
    text: str


def split_lines(text: str) -> list[str]:
    """Lines with their newline, cut at \\n alone as git does (str.splitlines also cuts at form feeds and others)."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def diff_text(path: str, old: str | None, new: str | None) -> str:
    """The git-style diff of one text file; None stands for a file that is not there; "" where nothing changed."""
    if old == new:
        return ""
    name_old = f"a/{path}" if old is not None else "/dev/null"
    name_new = f"b/{path}" if new is not None else "/dev/null"
    head = f"diff --git a/{path} b/{path}\n"
    head += "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    lines = unified_diff(split_lines(old or ""), split_lines(new or ""), name_old, name_new)
    return head + "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def split_patch(patch: str) -> tuple[FilePatch, ...]:
    """The sections of a patch, in order; text between them is left out."""
    lines = split_lines(patch)
    sections = []
    at = 0
    while at < len(lines):
        if lines[at].startswith("diff --git ") or _is_pair(lines, at):
            section, at = _read_section(lines, at)
            sections.append(FilePatch(_paths(section), "".join(section)))
        else:
            at += 1
    return tuple(sections)


def patch_paths(patch: str) -> tuple[str, ...]:
    """Every path that a patch touches, in order, each once."""
    return tuple(dict.fromkeys(path for section in split_patch(patch) for path in section.paths))


def essence(patch: str) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """What a patch does, whatever its context and the ids in its headers: of each file the paths, and what is added, removed or set."""
    return tuple((file.paths, _deeds(file.text)) for file in split_patch(patch))


def _deeds(section: str) -> tuple[str, ...]:
    lines = section.split("\n")
    start = next((at for at, line in enumerate(lines) if _HUNK.match(line)), len(lines))
    head = [line for line in lines[:start] if not line.startswith(("diff --git ", "index ", "--- ", "+++ "))]
    return (*filter(None, head), *(line for line in lines[start:] if line[:1] in ("+", "-", "\\")))


def drop_files(patch: str, drop: Callable[[str], bool]) -> tuple[str, tuple[str, ...]]:
    """The patch without the sections that touch a path for which `drop` holds, and those paths."""
    kept: list[str] = []
    dropped: list[str] = []
    for section in split_patch(patch):
        hits = [path for path in section.paths if drop(path)]
        dropped += hits
        if not hits:
            kept.append(section.text)
    return "".join(kept), tuple(dict.fromkeys(dropped))


def _is_pair(lines: list[str], at: int) -> bool:
    pair = at + 2 < len(lines) and lines[at].startswith("--- ") and lines[at + 1].startswith("+++ ")
    return pair and _HUNK.match(lines[at + 2]) is not None


def _read_section(lines: list[str], start: int) -> tuple[list[str], int]:
    """The lines of one file's section that mean something, and the index after it.

    Hunk lines are counted, so that their text is never taken for a header.
    """
    kept = [_plain(lines[start])]
    old_named = lines[start].startswith("--- ")
    at = start + 1
    while at < len(lines):
        end = at + 1
        if hunk := _HUNK.match(lines[at]):
            end = _skip_hunk(lines, at + 1, int(hunk[1] or 1), int(hunk[2] or 1))
            old_named = True
        elif lines[at].startswith("GIT binary patch"):
            end = _skip_binary(lines, at + 1)
            old_named = True
        elif lines[at].startswith("diff --git ") or (old_named and lines[at].startswith("--- ")):
            break
        elif not _HEADER.match(lines[at]) and not lines[at].startswith("--- "):
            at = end
            continue
        old_named = old_named or lines[at].startswith("--- ")
        kept += [_plain(lines[at]), *lines[at + 1 : end]]
        at = end
    return kept, at


def _plain(line: str) -> str:
    """A header in which git reads the very name that was read here: else it cuts a time off the end, and all that follows a quoted name."""
    if not line.startswith(("--- ", "+++ ")):
        return line
    name = line[4:].rstrip("\r\n").split("\t")[0]
    if _CLEAR.fullmatch(name) or _QUOTED.fullmatch(name):
        return line
    quoted = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in name.encode("utf-8", "surrogateescape"))
    return f'{line[:4]}"{quoted}"\n'


def _skip_hunk(lines: list[str], at: int, old: int, new: int) -> int:
    while at < len(lines) and (old > 0 or new > 0):
        mark = lines[at][:1]
        old -= mark in " -\n"
        new -= mark in " +\n"
        at += 1
    return at + (at < len(lines) and lines[at].startswith("\\"))


def _skip_binary(lines: list[str], at: int) -> int:
    while at < len(lines) and _BINARY.match(lines[at]):
        at += 1
    return at


def _paths(section: list[str]) -> tuple[str, ...]:
    found = [*_header_paths(section), *_git_paths(section[0])]
    return tuple(dict.fromkeys(str(PurePosixPath(path.lstrip("/"))) for path in found if path and path != "/dev/null"))


def _header_paths(section: list[str]) -> Iterator[str]:
    """Names in the lines before the first hunk."""
    for line in section:
        if _HUNK.match(line) or line.startswith("GIT binary patch"):
            return
        for key in _NAMES:
            if line.startswith(key):
                name = _unquote(line[len(key) :].rstrip("\r\n").split("\t")[0])
                yield name if key[0] in "rc" else _strip(name)


def _git_paths(line: str) -> Iterator[str]:
    """The names of a "diff --git" line: equal but for their first letter, or else a header names them as well."""
    if not line.startswith("diff --git "):
        return
    rest = line.removeprefix("diff --git ").rstrip("\r\n")
    quoted = re.findall(r'"(?:[^"\\]|\\.)*"', rest)
    half = len(rest) // 2
    names = quoted or ([rest[:half], rest[half + 1 :]] if rest[half : half + 1] == " " else rest.split(" "))
    yield from (_strip(_unquote(name)) for name in names)


def _strip(name: str) -> str:
    """Without the first component, as -p1 does."""
    return name if name == "/dev/null" else name.partition("/")[2] or name


def _unquote(name: str) -> str:
    """A path as git's C-style quoting wrote it (octal bytes of UTF-8)."""
    if len(name) < 2 or not name[0] == name[-1] == '"':
        return name
    raw = _ESCAPE.sub(lambda m: chr(int(m[1], 8)) if m[1].isdigit() else _LETTERS.get(m[1], m[1]), name[1:-1])
    return raw.encode("latin-1").decode("utf-8", "replace") if max(raw, default="\0") <= "\xff" else raw
