"""Under-specified variants of a task: which sentences of its statement only the simulated user knows; rules over text, no model.

The first sentence stays, as do headings and comments; of the other sentences and list items a share, drawn by the task's id and a
seed, becomes what the user holds. Code belongs to the sentence before it. A statement of one sentence is cut at its first colon or
semicolon. Left out: whether what is missing matters for the hidden tests; sentences are found by their marks, not by a grammar.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks import Task

from .config_user import UserConfig
from .goal import Component, Goal, Kind

PROFILE = "You use this program. You have not read its source and do not know how it is repaired."
POLICY = "You answer what you are asked, with what you know, and with nothing else; you do not say the same thing twice."
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_COMMENT = re.compile(r"\s*<!--(?!.*-->\s*\S)")
_HEADING = re.compile(r"#{1,6}\s")
_CODE = re.compile(r"( {4}|\t)")
_ITEM = re.compile(r"\A\s{0,3}(?:[-*+]|\d{1,3}[.)])\s+")
_SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)[ \t\r]*+(?:\n[ \t]*+|(?<=[ \t]))(?=[^\sa-z]|\w+[(_]|\w+\.\w)")
_TITLE = re.compile(r"[^\n]*[^\s.,;:!?-][ \t\r]*\n(?=[^\sa-z])")
"""A first line that ends no sentence, before a line that begins one: an issue's title."""
_CLAUSE = re.compile(r"(?<=[:;])\s+")
_PREFERENCE = re.compile(r"\b(prefer\w*|ideally|nice to have|would be nice|if possible|optional(?:ly)?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Brief:
    """A task as its agent and its user know it."""

    statement: str
    """What the agent is told."""
    goal: Goal
    """What the user holds; its first three components are profile, policy and objective."""


@dataclass(frozen=True, slots=True)
class _Unit:
    start: int
    end: int
    heading: bool = False
    """Or a comment: never withheld."""


def brief_of(task: Task, settings: UserConfig) -> Brief:
    """What the agent is told of a task, and what its user holds."""
    return make_brief(task.instance_id, task.problem_statement, settings.withhold, settings.seed)


def make_brief(name: str, statement: str, share: float, seed: int) -> Brief:
    """The same for the same instance id, statement, share and seed. A statement that cannot be cut stays whole."""
    units = split_statement(statement)
    texts = [statement[unit.start : unit.end] for unit in units]
    open_units = [place for place, unit in enumerate(units) if not unit.heading]
    candidates = [place for place in open_units[1:] if re.search(r"\w", texts[place])]
    drawn = sorted(candidates, key=lambda place: hashlib.blake2b(f"{seed}/{name}/{place}".encode()).digest())
    held = sorted(drawn[: math.ceil(share * len(candidates))])
    objective = _plain(texts[open_units[0]]) if open_units else statement.strip()
    components = [Component(Kind.PROFILE, PROFILE), Component(Kind.POLICY, POLICY), Component(Kind.OBJECTIVE, objective)]
    components += [Component(_kind(texts[place]), _plain(texts[place])) for place in held]
    return Brief(_without(statement, [units[place] for place in held]), Goal(tuple(components)))


def split_statement(text: str) -> list[_Unit]:
    """Sentences, list items (with the code that follows them) and headings, in their order; ends stand before white space."""
    units = list(_join_code(text, _lines(text)))
    plain = [unit for unit in units if not unit.heading]
    if len(plain) == 1 and (cut := _CLAUSE.search(text, plain[0].start, plain[0].end)):
        place = units.index(plain[0])
        units[place : place + 1] = [_Unit(plain[0].start, cut.start()), _Unit(cut.end(), plain[0].end)]
    return units


def _kind(text: str) -> Kind:
    return Kind.PREFERENCE if _PREFERENCE.search(text) else Kind.REQUIREMENT


def _plain(text: str) -> str:
    """Without its list mark."""
    return _ITEM.sub("", text, count=1).strip()


def _without(text: str, gone: Sequence[_Unit]) -> str:
    """The text less these units; what is left of a cut sentence ends with a full stop."""
    if not gone:
        return text
    for unit in reversed(gone):
        before, after = text[: unit.start].rstrip(" \t"), text[unit.end :].lstrip(" \t")
        glue = " " if before and after and not before.endswith("\n") and not after.startswith("\n") else ""
        text = f"{before}{glue}{after}"
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"{text[:-1]}." if text.endswith((":", ";", ",")) else text


@dataclass(frozen=True, slots=True)
class _Block:
    what: str
    """heading, item, text or code."""
    start: int
    end: int


def _lines(text: str) -> Iterator[_Block]:
    """Runs of lines of one kind; a blank line ends all but code."""
    found: _Block | None = None
    fenced = comment = False
    title = _TITLE.match(text)
    place = 0
    for line in text.splitlines(keepends=True):
        start, place = place, place + len(line)
        end = start + len(line.rstrip())
        fence = bool(_FENCE.match(line))
        comment = comment or (not fenced and bool(_COMMENT.match(line)))
        if comment:
            what, comment = "heading", "-->" not in line
        elif fenced or fence:
            what, fenced = "code", fenced != fence
        elif not line.strip():
            what = ""
        else:
            what = _what(line, found)
        begins = what in ("item", "heading") or (title is not None and start == title.end())
        if found and (what != found.what or begins) and (what != "more" or begins):
            yield found
            found = None
        if what:
            found = _Block(found.what, found.start, end) if found else _Block("text" if what == "more" else what, start, end)
    if found:
        yield found


def _what(line: str, before: _Block | None) -> str:
    """The kind of a line; "more" goes on with what stands before it."""
    if _HEADING.match(line):
        return "heading"
    if _ITEM.match(line):
        return "item"
    if before is not None and before.what in ("item", "text"):
        return "more"
    return "code" if _CODE.match(line) else "text"


def _join_code(text: str, blocks: Iterator[_Block]) -> Iterator[_Unit]:
    """Units of the blocks: code ends the unit before it, a text is its sentences."""
    last: _Unit | None = None
    for block in blocks:
        if block.what == "code" and last is not None and not last.heading:
            last = _Unit(last.start, block.end)
            continue
        for unit in _sentences(text, block):
            if last is not None:
                yield last
            last = unit
    if last is not None:
        yield last


def _sentences(text: str, block: _Block) -> Iterator[_Unit]:
    if block.what != "text":
        yield _Unit(block.start, block.end, block.what == "heading")
        return
    start = block.start
    for cut in _SENTENCE.finditer(text, block.start, block.end):
        yield _Unit(start, cut.start())
        start = cut.end()
    yield _Unit(start, block.end)
