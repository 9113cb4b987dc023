"""The problem statement of a planted bug as a user would report it: what was called, what came, what was expected; pure text.

No file is named, and no function but those that the test itself calls; a line of the fix never appears.
"""

import ast
import keyword
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .failures import Failure
from .mine_statement import TELLING, reveals
from .mutate import Mutation
from .snippet import Snippet, find_snippet

VALUE_CHARS = 240
_RAISED, _QUOTED = 3, 5
"""Ranks: below the first a value is compared, below the second the failure itself is told."""
_FAILS = "This check fails."
_WHERE = re.compile(r"\s*\+\s+where (.+) = (.+)")
_ARGUMENTS = re.compile(r"(?:<[^<>]*>|[\w.]+)\((.*)\)")
_CAUSE = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_UNTOLD = re.compile(r"/testbed|testMethod=|\.py\b| at 0x[0-9a-fA-F]+")
"""Of a machine, a test class, a file or a run."""


@dataclass(frozen=True, slots=True)
class _Told:
    """One way to report the bug; the lowest rank is the plainest."""

    rank: int
    text: str
    test: str


def describe(package: str, mutation: Mutation, failures: Iterable[Failure], read: Callable[[str], str], secrets: Sequence[str]) -> str:
    """The statement; "" where nothing can be told without telling the fix.

    `package`: name and version. `read`: the text of a test file. `secrets`: the lines that the fix brings.
    """
    found = [told for failure in failures for told in _ways(failure, mutation, read)]
    for told in sorted(found, key=lambda one: (one.rank, len(one.text), one.test)):
        text = f"{package} {told.text}\n"
        if not tells(text, secrets):
            return text
    return ""


def _ways(failure: Failure, mutation: Mutation, read: Callable[[str], str]) -> list[_Told]:
    """The report with and without its snippet, and one that only says how it ended."""
    parameters = failure.test.partition("[")[2].removesuffix("]")
    snippet = find_snippet(read(failure.test.split("::")[0]), failure.line, parameters) if failure.line else None
    rank, said = _sentence(failure.message, snippet)
    shown = "\n".join(f"    {line}".rstrip() for line in snippet.text.splitlines()) if snippet else ""
    if snippet and snippet.case and said:
        rank, said = rank + 1, f"{said} The case is {_code(snippet.case)}."
    if snippet and not snippet.complete:
        rank += 1
    if _UNTOLD.search(shown):
        shown = ""
    if _UNTOLD.search(said) or (rank >= _RAISED and _mentions(said, mutation) and not _mentions(shown, mutation)):
        name = _raised(failure.message)
        rank, said = (_RAISED, f"It raises `{name}`.") if name else (_QUOTED, _FAILS if shown else "")
    head = "gives a wrong result." if rank < _RAISED else "fails."
    ways = [_Told(rank, f"{head}\n\n{shown}\n\n{said}", failure.test)] if shown and said else []
    return [*ways, _Told(rank + _QUOTED, f"{head}\n\n{said}", failure.test)] if said and said != _FAILS else ways


def _sentence(message: str, snippet: Snippet | None) -> tuple[int, str]:
    """(rank, what came and what was expected)."""
    lines = message.splitlines() or [""]
    plain = next((line for line in lines if re.match(r"(AssertionError: )?assert ", line)), "").removeprefix("AssertionError: ")
    if plain and (sides := _sides(plain.removeprefix("assert "), " == ")):
        return _compared(sides, lines, snippet)
    if (told := re.fullmatch(r"AssertionError: (?:\w+ differ: )?(.+)", lines[0])) and (sides := _sides(told[1], " != ")):
        call = getattr(snippet.failing, "value", None) if snippet else None
        turned = isinstance(call, ast.Call) and len(call.args) > 1 and _is_turned(call.args[0], call.args[1], snippet)
        return 1, _came("The result is", *(reversed(sides) if turned else sides))
    if missing := re.search(r"DID NOT RAISE (?:<class ')?([\w.]+)", message):
        return 2, f"No `{missing[1].rpartition('.')[2]}` is raised, but one was expected."
    if plain:
        return 2, f"This does not hold: {_code(' '.join([plain.removeprefix('assert '), *_wheres(lines)]))}."
    if name := _raised(message):
        detail = (_CAUSE.fullmatch(lines[0]) or [None, None, None])[2]
        return _RAISED, f"It raises {_code(f'{name}: {detail}' if detail else name)}."
    return _QUOTED - 1, _FAILS if lines[0] in ("", "AssertionError") else f"It fails: {_code(lines[0])}."


def _compared(sides: tuple[str, str], lines: Sequence[str], snippet: Snippet | None) -> tuple[int, str]:
    """Of `assert CAME == EXPECTED`, or the other way round where the test is written so."""
    test = getattr(snippet.failing, "test", None) if snippet else None
    left, right = (test.left, test.comparators[0]) if isinstance(test, ast.Compare) and len(test.ops) == 1 else (None, None)
    if _is_turned(left, right, snippet):
        sides, left = (sides[1], sides[0]), right
    if snippet is None or not isinstance(left, ast.Call):
        return 1, _came("The result is", *sides)
    call = " ".join((ast.get_source_segment(snippet.source, left) or "").split())
    called = next((match[2] for line in lines if (match := _WHERE.fullmatch(line)) and match[1] == sides[0]), "")
    if (given := _ARGUMENTS.fullmatch(called)) and not _UNTOLD.search(given[1]):
        call = f"{ast.get_source_segment(snippet.source, left.func)}({given[1]})"
    return 0, _came(f"{_code(call)} gives", *sides)


def _came(subject: str, came: str, expected: str) -> str:
    return f"{subject} {_code(came)}, but {_code(expected)} was expected."


def _sides(text: str, sign: str) -> tuple[str, str] | None:
    left, _, right = text.partition(sign)
    return (left, right) if right and sign not in right else None


def _wheres(lines: Sequence[str]) -> list[str]:
    return [f"(where {match[1]} = {match[2]})" for line in lines if (match := _WHERE.fullmatch(line))][:2]


def _is_turned(left: ast.expr | None, right: ast.expr | None, snippet: Snippet | None) -> bool:
    """Whether the expected value is written first: a literal, or what the test is given and compares with a call."""
    if isinstance(left, ast.Name) and snippet and left.id in snippet.given:
        return isinstance(right, ast.Call)
    return _is_literal(left) and not _is_literal(right)


def _is_literal(node: ast.AST | None) -> bool:
    return node is not None and not any(isinstance(child, ast.Call | ast.Name) for child in ast.walk(node))


def _raised(message: str) -> str:
    """The exception that ended a test; "" for an assertion."""
    cause = _CAUSE.fullmatch(message.split("\n", 1)[0])
    if cause is None or cause[1] == "AssertionError" or not re.search(r"\w\.\w|(Error|Exception|Warning|Exit|Stop\w+)$", cause[1]):
        return ""
    return cause[1].rpartition(".")[2]


def _code(text: str) -> str:
    """A value as code, cut where it is long."""
    text = text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]} ..."
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _mentions(text: str, mutation: Mutation) -> bool:
    return re.search(rf"\b{re.escape(mutation.function.rpartition('.')[2])}\b", text) is not None


def fix_lines(gold_patch: str) -> tuple[str, ...]:
    """The lines that a patch brings, without their indentation."""
    return tuple(line[1:].strip() for line in gold_patch.splitlines() if line.startswith("+") and not line.startswith("+++ "))


def tells(text: str, secrets: Sequence[str]) -> bool:
    """Whether a line of the fix stands in the statement; a short one only as a whole line or a whole value."""
    told = {secret.strip() for secret in secrets if any(not keyword.iskeyword(word) for word in re.findall(r"\w+", secret))}
    long = [secret for secret in sorted(told) if len(secret) >= TELLING]
    short = told.difference(long)
    lines = {line.strip() for line in text.splitlines()} | set(re.findall(r"`(.+?)`", text))
    return reveals(text, long) or bool(short & lines)
