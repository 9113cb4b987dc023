"""What the short tracebacks of a pytest log say of each failed test; pure text, knows no task."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TITLE = re.compile(r"_+ (?=\w)(.+?) _+")
"""The name of a failed test; a long one has but one underscore on either side."""
_ENTRY = re.compile(r"(\S.*?):(\d+): in (\S+)")


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed test."""

    test: str
    """Its pytest id."""
    line: int
    """1-based line of the test's own file where it failed, in the test function itself; 0 where it failed before."""
    message: str
    """Lines that pytest marks with E, without the mark."""


def read_failures(log: str, tests: Sequence[str]) -> tuple[Failure, ...]:
    """The failures of these tests (ids), in the order of the log."""
    titles: dict[str, list[str]] = {}
    for test in tests:
        titles.setdefault(".".join(test.split("::")[1:]), []).append(test)
    found = {}
    for title, lines in _sections(log):
        places = [(match[1], int(match[2]), match[3]) for line in lines if (match := _ENTRY.fullmatch(line))]
        test = next((test for test in titles.get(title, ()) if any(_is(path, test) for path, _, _ in places)), "")
        if not test or test in found:
            continue
        own = test.split("::")[-1].split("[")[0]
        line = next((number for path, number, name in places if _is(path, test) and name == own), 0)
        said = [text[1:].removeprefix("   ") for text in lines if text == "E" or text.startswith("E   ")]
        found[test] = Failure(test, line, "\n".join(said).rstrip())
    return tuple(found.values())


def _is(path: str, test: str) -> bool:
    """Whether a traceback's path is the file of a test: from elsewhere, where the test has gone to another folder."""
    file = test.split("::")[0]
    return path == file or path.endswith(f"/{file}")


def _sections(log: str) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) of the part FAILURES."""
    title, lines = "", list[str]()
    for line in log.splitlines():
        begins = TITLE.fullmatch(line)
        if begins or line.startswith("====="):
            if title:
                yield title, lines
            title, lines = begins[1] if begins else "", []
        elif title:
            lines.append(line)
