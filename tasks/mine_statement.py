"""The problem statement of a mined task: the issue, or what the commit says, and what a test says; never a line of the fix; pure text."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .failures import TITLE
from .mine import Candidate, Change
from .patches import split_lines
from .statement import plainness, quote

_TRAILER = re.compile(r"(cc|[a-z]\w*(-\w+)+)\s*:\s*\S", re.IGNORECASE)
"""Signed-off-by: ..., Co-authored-by: ..., Change-Id: ..."""
_DIFF = re.compile(r"^(diff --git |index [0-9a-f]+\.\.|@@ |\+\+\+ |--- |[+-]\s*\S)")
TELLING = 8
"""Characters from which an added line can be recognised: `return` and `else:` tell nothing."""


def load_issues(path: Path) -> dict[str, str]:
    """Texts by commit id or issue number, from lines {"commit": ID, "text": ...} or {"issue": NUMBER, "text": ...}."""
    issues: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            issues[str(row["commit"] if "commit" in row else row["issue"])] = str(row["text"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path}:{number}: write {{"commit": ID, "text": ...}} or {{"issue": NUMBER, "text": ...}}') from None
    return issues


def find_issue(candidate: Candidate, issues: Mapping[str, str]) -> str:
    """The supplied text for a commit: by its id, or by a number (#123) that its message names; "" for none."""
    if candidate.commit in issues:
        return issues[candidate.commit]
    return next((issues[number] for number in re.findall(r"#(\d+)", candidate.message) if number in issues), "")


def added_lines(changes: Sequence[Change]) -> tuple[str, ...]:
    """Source lines that the fix brings, without their indentation, as far as they can be recognised."""
    found = []
    for change in changes:
        old = {line.strip() for line in split_lines(change.old or "")}
        new = (line.strip() for line in split_lines(change.new or ""))
        found += [line for line in new if line not in old and len(line) >= TELLING]
    return tuple(dict.fromkeys(found))


def reveals(text: str, secrets: Sequence[str]) -> bool:
    """Whether a line of the fix stands in a text, however it is spaced."""
    flat = re.sub(r"\s+", "", text)
    return any(re.sub(r"\s+", "", secret) in flat for secret in secrets)


def statement(text: str, messages: Mapping[str, str], secrets: Sequence[str]) -> str:
    """What is told (without lines that look like a diff or hold the fix), and the plainest failure; "" where nothing can be told."""
    told = "\n".join(line.rstrip() for line in text.splitlines() if not _left_out(line, secrets)).strip()
    told = re.sub(r"\n{3,}", "\n\n", told)
    failure = _failure(messages, secrets)
    whole = "\n\n".join(part for part in (told, failure) if part)
    return "" if reveals(whole, secrets) or not whole else f"{whole}\n"


def _left_out(line: str, secrets: Sequence[str]) -> bool:
    is_list = re.match(r"^[-*] [A-Za-z`]", line.strip()) is not None
    looks_like_diff = _DIFF.match(line) is not None and not is_list
    return _TRAILER.match(line.strip()) is not None or looks_like_diff or reveals(line, secrets)


def _failure(messages: Mapping[str, str], secrets: Sequence[str]) -> str:
    for _, test in sorted((plainness(message), test) for test, message in messages.items() if message.strip()):
        said = quote(messages[test])
        if not reveals(said, secrets):
            return f"The test `{test.rsplit('::', 1)[-1].split('[')[0]}` fails:\n\n    {said}"
    return ""


def read_messages(log: str, tests: Sequence[str]) -> dict[str, str]:
    """Test id -> what its failure says, from the short tracebacks of a pytest log."""
    titles = {test.split("::", 1)[-1].replace("::", "."): test for test in tests}
    messages: dict[str, list[str]] = {}
    current = ""
    for line in log.splitlines():
        if title := TITLE.fullmatch(line):
            current = titles.get(title[1]) or _first_of(title[1].removeprefix("ERROR collecting "), tests)
        elif current and line.startswith("E   "):
            messages.setdefault(current, []).append(line[4:])
    return {test: "\n".join(lines) for test, lines in messages.items()}


def _first_of(path: str, tests: Sequence[str]) -> str:
    """The first test of a file that could not be loaded."""
    return next((test for test in tests if test.startswith(f"{path}::")), "")
