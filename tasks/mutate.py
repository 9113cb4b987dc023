"""Bugs planted by syntax-tree mutation: one small wrong edit in one small function; knows source text, no sandbox, no tests.

A mutation replaces the text of one node (ast gives its place), so the rest of the file keeps every byte. Left out: edits of
several places at once, deleted branches, and anything in decorators, docstrings and class bodies.
"""

import ast
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .operators import Function, Source, edits, read_source


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted bug: what kind, where, and the edit itself."""

    kind: str
    path: str
    function: str
    """Name as a person writes it: `Class.method` or `name`."""
    first_line: int
    """1-based line where the function begins, decorators included (Python's co_firstlineno)."""
    line: int
    """1-based line of the edit."""
    start: int
    """Offset of the first replaced byte of the UTF-8 source."""
    end: int
    new: str
    """What stands there instead."""

    @property
    def id(self) -> str:
        """Short and stable: the same edit of the same file has the same id on every machine."""
        text = f"{self.path}:{self.start}:{self.end}:{self.new}"
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def mutate(source: str, mutation: Mutation) -> str:
    """The source with the bug in it."""
    raw = source.encode()
    return (raw[: mutation.start] + mutation.new.encode() + raw[mutation.end :]).decode()


def find_mutations(source: str, path: str, *, min_lines: int = 3, max_lines: int = 15) -> list[Mutation]:
    """Every mutation of the functions of `min_lines` to `max_lines` lines (docstring included), in the order of the text.

    Source that does not parse has none. No mutation is a syntax error, leaves the syntax tree as it was, or moves a line.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    placed = read_source(source)
    sized = ((name, node) for name, node in _functions(tree) if min_lines <= (node.end_lineno or 0) - node.lineno + 1 <= max_lines)
    return [mutation for name, function in sized for mutation in _mutations(function, name, path, placed)]


def choose_mutations(found: Sequence[Mutation], seed: int, per_function: int = 2) -> list[Mutation]:
    """An order to try them in: kinds take turns, few from one function, the same for the same seed."""
    rng = random.Random(seed)
    shuffled = sorted(found, key=lambda m: (m.path, m.start, m.end, m.new))
    rng.shuffle(shuffled)
    used: dict[tuple[str, str], int] = {}
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in shuffled:
        place = (mutation.path, mutation.function)
        used[place] = used.get(place, 0) + 1
        if used[place] <= per_function:
            by_kind.setdefault(mutation.kind, []).append(mutation)
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    rounds = max((len(items) for items in by_kind.values()), default=0)
    return [by_kind[kind][turn] for turn in range(rounds) for kind in kinds if turn < len(by_kind[kind])]


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Functions of modules and classes (not those inside functions: their enclosing one is what a person opens)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)


def _mutations(function: Function, name: str, path: str, source: Source) -> Iterator[Mutation]:
    first, last = source.lines[function.lineno - 1], source.span(function)[1]
    first_line = min(function.lineno, *(node.lineno for node in function.decorator_list), function.lineno)
    head = "if 1:\n" if function.col_offset else ""  # so that an indented function parses alone
    before = ast.dump(ast.parse(head + source.raw[first:last].decode()))
    for kind, (start, end, new) in edits(function, source):
        after = head + source.raw[first:start].decode() + new + source.raw[end:last].decode()
        same_lines = source.raw[start:end].count(b"\n") == new.count("\n")
        if same_lines and _dump(after) not in (None, before):
            yield Mutation(kind, path, name, first_line, source.line(start), start, end, new)


def _dump(text: str) -> str | None:
    try:
        return ast.dump(ast.parse(text))
    except SyntaxError:
        return None
