"""Which tasks of a suite are wanted: by repository, language, size and difficulty, and none of an evaluation's; knows no files, no
sandbox."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from .base import Task
from .patches import split_patch

LANGUAGES = {
    **{"py": "python", "js": "javascript", "jsx": "javascript", "mjs": "javascript", "ts": "typescript", "tsx": "typescript", "go": "go"},
    **{
        "rs": "rust",
        "java": "java",
        "rb": "ruby",
        "php": "php",
        "c": "c",
        "h": "c",
        "cc": "c++",
        "cpp": "c++",
        "hpp": "c++",
        "kt": "kotlin",
    },
    **{"scala": "scala", "cs": "c#", "swift": "swift", "lua": "lua", "sh": "shell"},
}
_MIRROR = re.compile(r"^swesmith/(.+?)__(.+)\.[0-9a-f]{8}$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a task must be; empty and None demand nothing."""

    repositories: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()
    max_patch_lines: int | None = None
    """Lines that the gold patch adds and removes, both counted."""
    max_files: int | None = None
    """Files that the gold patch touches."""
    avoid: tuple[str, ...] = ()
    """Repositories of evaluation suites: none of theirs is trained on."""


PAPER = Filter(max_patch_lines=499, max_files=7)
"""The sizes of arXiv:2508.03501 (its other two filters, tests that fail by missing names alone and flaky ones, need runs: validate.py)."""


def why_not(task: Task, wanted: Filter) -> str:
    """Why a task is left out, in one word or two; "" where it is wanted."""
    if wanted.repositories and repository(task) not in map(str.lower, wanted.repositories):
        return "repository"
    if wanted.languages and language(task) not in map(str.lower, wanted.languages):
        return "language"
    if wanted.difficulties and task.difficulty not in wanted.difficulties:
        return "difficulty"
    if wanted.max_patch_lines is not None and patch_lines(task.gold_patch) > wanted.max_patch_lines:
        return "patch lines"
    if wanted.max_files is not None and len(task.files) > wanted.max_files:
        return "files"
    return "in an evaluation" if repository(task) in map(str.lower, wanted.avoid) else ""


def choose(tasks: Sequence[Task], wanted: Filter) -> tuple[tuple[Task, ...], Counter[str]]:
    """The wanted tasks, in their order, and how many were left out for which reason."""
    reasons = [why_not(task, wanted) for task in tasks]
    kept = tuple(task for task, reason in zip(tasks, reasons, strict=True) if not reason)
    return kept, Counter(reason for reason in reasons if reason)


def repository(task: Task) -> str:
    """OWNER/NAME in lower case; a mirror of SWE-smith counts as what it mirrors."""
    name = task.repo.lower()
    match = _MIRROR.match(name)
    return f"{match[1]}/{match[2]}" if match else name


def language(task: Task) -> str:
    """As the row says, else that of most files of the gold patch; "unknown" where no suffix tells."""
    if task.language:
        return task.language.lower()
    found = Counter(LANGUAGES[suffix] for path in task.files if (suffix := PurePosixPath(path).suffix[1:].lower()) in LANGUAGES)
    return found.most_common(1)[0][0] if found else "unknown"


def patch_lines(patch: str) -> int:
    """Added and removed lines."""
    lines = [line for section in split_patch(patch) for line in section.text.split("\n@@ ", 1)[-1].split("\n")[1:]]
    return sum(line[:1] in ("+", "-") for line in lines)
