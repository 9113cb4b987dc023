"""Bugs planted by edits of the syntax tree: one small wrong edit, or two, in one small function; knows source text, no sandbox, no tests.

libcst gives the place of every node in the file's bytes, and an edit replaces those bytes, so the rest of the file keeps every one.
Left out: edits of several functions at once, and anything in decorators, docstrings and class bodies.
"""

import ast
import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from .operators_flow import edits
from .spans import Code, Edit, Source, read_function, read_source

Lines = tuple[int, int]
"""First and last line, 1-based, inclusive."""
COMBINED = "combined"
PAIRS = 2
"""Combined bugs of one function, at most."""
_ALONE = {"default", "missing_branch", "removed_body"}
"""Kinds that are not combined with another."""


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
    """1-based line where the edit begins."""
    start: int
    """Offset of the first replaced byte of the UTF-8 source."""
    end: int
    new: str
    """What stands there instead."""
    reached: tuple[Lines, ...] = ()
    """Lines of the untouched file, of each of which a run must have come to one for the bug to act; none where a call is enough."""

    @property
    def id(self) -> str:
        """Short and stable: the same edit of the same file has the same id on every machine."""
        text = f"{self.path}:{self.start}:{self.end}:{self.new}"
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class _Place:
    """A function in its file."""

    path: str
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def first_line(self) -> int:
        """Of its first decorator or its `def`."""
        return min(node.lineno for node in (self.node, *self.node.decorator_list))

    @property
    def length(self) -> int:
        """In lines, decorators apart."""
        return (self.node.end_lineno or 0) - self.node.lineno + 1


def mutate(source: str, mutation: Mutation) -> str:
    """The source with the bug in it."""
    return _edited(source.encode(), 0, (mutation.start, mutation.end, mutation.new))


def find_mutations(
    source: str, path: str, *, min_lines: int = 3, max_lines: int = 15, called: Collection[int] | None = None
) -> list[Mutation]:
    """Every mutation of the functions of `min_lines` to `max_lines` lines (docstring included), in the order of the text.

    `called`: only of those that begin on these lines (Mutation.first_line). Source that does not parse has none. No mutation is a syntax
    error, leaves the syntax tree as it was, or changes a line outside of its function.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    placed = read_source(source)
    functions = [_Place(path, name, node) for name, node in _functions(tree)]
    wanted = [it for it in functions if min_lines <= it.length <= max_lines and (called is None or it.first_line in called)]
    return [mutation for place in wanted for mutation in _mutations(place, placed)]


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


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of modules and classes (not those inside functions: their enclosing one is what a person opens)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)


def _mutations(place: _Place, source: Source) -> Iterator[Mutation]:
    """Of one function: single edits, each once, then combined ones."""
    code = read_function(source, place.node.lineno, place.node.end_lineno or 0, place.node.col_offset > 0)
    if code is None:
        return
    differs = _change(place, source)
    singles: dict[Edit, str] = {}
    for kind, edit in edits(code):
        if edit not in singles and differs(edit):
            singles[edit] = kind
    for edit, kind in singles.items():
        yield _mutation(place, kind, code, edit, (edit,))
    for pair in _pairs(code, [edit for edit, kind in singles.items() if kind not in _ALONE]):
        if differs(both := _joined(source, *pair)):
            yield _mutation(place, COMBINED, code, both, pair)


def _mutation(place: _Place, kind: str, code: Code, edit: Edit, parts: Sequence[Edit]) -> Mutation:
    reached = tuple(dict.fromkeys(lines for part in parts if (lines := _reached(code, part))))
    return Mutation(kind, place.path, place.name, place.first_line, code.source.line(edit[0]), *edit, reached)


def _pairs(code: Code, found: Sequence[Edit]) -> Iterator[tuple[Edit, Edit]]:
    """Edits of different statements, in the order of the text; which ones is left to a hash of their places."""
    rest = sorted(found, key=lambda edit: hashlib.sha256(repr((code.source.lines[0], *edit)).encode()).digest())
    for _ in range(PAIRS):
        if not rest:
            return
        first = rest.pop(0)
        other = next((edit for edit in rest if _reached(code, edit) != _reached(code, first) and not _overlap(edit, first)), None)
        if other is None:
            return
        rest.remove(other)
        yield (first, other) if first < other else (other, first)


def _overlap(one: Edit, two: Edit) -> bool:
    return one[0] < two[1] and two[0] < one[1]


def _joined(source: Source, first: Edit, second: Edit) -> Edit:
    """Two edits as one."""
    between = source.raw[first[1] : second[0]].decode()
    return first[0], second[1], first[2] + between + second[2]


def _reached(code: Code, edit: Edit) -> Lines | None:
    """Where a run must come for an edit to act: the statements in it, or its statement; None where a call is enough (a signature)."""
    start, end, _ = edit
    inside = [span for span, simple in code.statements if simple and start <= span[0] and span[1] <= end]
    if inside:
        return code.lines(inside[0][0], inside[-1][1])
    around = [(span, simple) for span, simple in code.statements if span[0] <= start and end <= span[1]]
    if not around:
        return None
    span, simple = around[-1]
    return code.lines(span[0], span[1] if simple else end)


def _change(place: _Place, source: Source) -> Callable[[Edit], bool]:
    """Tells of an edit whether the function parses after it, and is another one."""
    first, last = source.block(place.node.lineno, place.node.end_lineno or 0)
    head = "if 1:\n" if place.node.col_offset else ""  # so that an indented function parses alone
    raw = source.raw[first:last]
    untouched = (None, _dump(head + raw.decode()))
    return lambda edit: _dump(head + _edited(raw, first, edit)) not in untouched


def _edited(raw: bytes, start: int, edit: Edit) -> str:
    """Text that begins at byte `start` of its file, with the edit made in it."""
    return (raw[: edit[0] - start] + edit[2].encode() + raw[edit[1] - start :]).decode()


def _dump(text: str) -> str | None:
    try:
        return ast.dump(ast.parse(text))
    except SyntaxError:
        return None
