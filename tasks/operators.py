"""The kinds of bug that are planted, one function each: a syntax node -> wrong text for it; knows nothing of files or tests.

An edit touches as little text as it can (an operator, a name, a constant), in the author's own formatting, so that the place
does not give itself away by a change of quotes or spaces.
"""

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
Placed = ast.expr | ast.stmt
Edit = tuple[int, int, str]
"""Replace the bytes [start, end) by this text."""

_COMPARE: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.Div: ("/", "//"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_METHODS = {"startswith": "endswith", "lstrip": "rstrip", "lower": "upper", "keys": "values", "append": "extend", "find": "rfind"}
_METHODS |= {new: old for old, new in _METHODS.items()}
_ERRORS = {
    "ValueError": "KeyError",
    "KeyError": "IndexError",
    "IndexError": "KeyError",
    "TypeError": "ValueError",
    "AttributeError": "KeyError",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text, addressed by syntax nodes (ast counts columns in UTF-8 bytes)."""

    raw: bytes
    lines: tuple[int, ...]
    """Offset of the first byte of each line."""

    def span(self, node: Placed) -> tuple[int, int]:
        """The bytes of a node."""
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[end_line - 1] + end_column

    def text(self, node: Placed) -> str:
        """A node as its author wrote it."""
        start, end = self.span(node)
        return self.raw[start:end].decode()

    def line(self, offset: int) -> int:
        """1-based line of a byte."""
        return bisect_right(self.lines, offset)

    def replace(self, node: Placed, new: str) -> Edit:
        """Other text for a node."""
        return (*self.span(node), new)

    def swap(self, first: Placed, second: Placed) -> Edit:
        """Two nodes change places."""
        (start, middle), (resume, end) = self.span(first), self.span(second)
        return start, end, self.text(second) + self.raw[middle:resume].decode() + self.text(first)

    def between(self, left: Placed, right: Placed, old: str, new: str) -> Iterator[Edit]:
        """Another operator between two nodes; `old` is a pattern."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.search(old, self.raw[start:end].decode())
        if found and self.raw[start:end].isascii():
            yield start + found.start(), start + found.end(), new


def read_source(text: str) -> Source:
    """A file's text with its lines as the parser counts them (\\n, \\r\\n and \\r, not form feeds)."""
    raw = text.encode()
    return Source(raw, (0, *(match.end() for match in re.finditer(rb"\r\n|\n|\r", raw))))


def edits(function: Function, source: Source) -> Iterator[tuple[str, Edit]]:
    """Every (kind, edit) of a function: its body, docstring apart, and its defaults."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    nodes = [node for statement in body for node in ast.walk(statement)]
    for kind, operator in KINDS.items():
        yield from ((kind, edit) for node in nodes for edit in operator(node, source))
    yield from (("default", edit) for edit in _default(function.args, source))
    yield from (("variable", edit) for edit in _variable(function, nodes, source))


def _comparison(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`a < b` -> `a <= b`, `x in y` -> `x not in y`."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from source.between(node.left, node.comparators[0], *_COMPARE[type(node.ops[0])])


def _off_by_one(node: ast.AST, source: Source) -> Iterator[Edit]:
    """A small integer, one too high or too low."""
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value <= 1000:
        yield source.replace(node, str(node.value + 1))
        if node.value > 1 or (node.value == 1 and source.raw[source.span(node)[0] - 1 :][:1] != b"-"):
            yield source.replace(node, str(node.value - 1))


def _condition(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`if x:` -> `if not x:`."""
    if isinstance(node, ast.If | ast.While | ast.IfExp) and isinstance(node.test, ast.Name | ast.Call | ast.Attribute):
        yield source.replace(node.test, f"not {source.text(node.test)}")


def _negation(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`not x` -> `x`."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield source.replace(node, source.text(node.operand))


def _boolean(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`a and b` -> `a or b`."""
    if isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield from source.between(node.values[0], node.values[1], rf"\b{old}\b", new)


def _arithmetic(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`a + b` -> `a - b`; not beside text, where it would fail at once."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not (_is_text(node.left) or _is_text(node.right)):
        yield from source.between(node.left, node.right, *_ARITHMETIC[type(node.op)])


def _augmented(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`x += y` -> `x -= y`, `x = y`."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
        old, new = _ARITHMETIC[type(node.op)]
        if not _is_text(node.value):
            yield from source.between(node.target, node.value, rf"{old}=", f"{new}=")
        yield from source.between(node.target, node.value, rf"{old}=", "=")


def _arguments(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`f(a, b)` -> `f(b, a)`."""
    if isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(arg, ast.Starred) for arg in node.args[:2]):
        yield source.swap(node.args[0], node.args[1])


def _returned(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`return x` -> `return None`; `return a, b` -> `return b, a`; True and False change places."""
    value = node.value if isinstance(node, ast.Return) else None
    if isinstance(value, ast.Tuple) and len(value.elts) == 2:
        yield source.swap(value.elts[0], value.elts[1])
    elif isinstance(value, ast.Constant) and isinstance(value.value, bool):
        yield source.replace(value, str(not value.value))
    elif value is not None and not (isinstance(value, ast.Constant) and value.value is None):
        yield source.replace(value, "None")


def _slice(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`x[1:]` -> `x[:1]`, `x[:n]` -> `x[n:]`, `x[a:b]` -> `x[a:b + 1]`."""
    bounds = node.slice if isinstance(node, ast.Subscript) else None
    if not isinstance(bounds, ast.Slice) or bounds.step is not None:
        return
    if bounds.lower is not None and bounds.upper is None:
        yield source.replace(bounds, f":{source.text(bounds.lower)}")
    elif bounds.upper is not None and bounds.lower is None:
        yield source.replace(bounds, f"{source.text(bounds.upper)}:")
    elif bounds.upper is not None:
        yield source.replace(bounds.upper, f"{source.text(bounds.upper)} + 1")


def _dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    """A call for its effect, or an assignment to an attribute or item, that does not happen."""
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    stored = isinstance(node, ast.Assign) and all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    if isinstance(node, ast.stmt) and (call or stored):
        yield source.replace(node, "pass")


def _twin(node: ast.AST, source: Source) -> Iterator[Edit]:
    """The neighbour of a well-known function: min for max, any for all, startswith for endswith."""
    if isinstance(node, ast.Name) and node.id in _FUNCTIONS and isinstance(node.ctx, ast.Load):
        yield source.replace(node, _FUNCTIONS[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in _METHODS:
        end = source.span(node)[1]
        yield end - len(node.attr), end, _METHODS[node.attr]


def _exception(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`except KeyError` -> `except IndexError`, `raise ValueError` -> `raise KeyError`."""
    caught = node.type if isinstance(node, ast.ExceptHandler) else None
    raised = node.exc if isinstance(node, ast.Raise) else None
    name = caught or (raised.func if isinstance(raised, ast.Call) else raised)
    if isinstance(name, ast.Name) and name.id in _ERRORS:
        yield source.replace(name, _ERRORS[name.id])


def _loop(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`break` <-> `continue`."""
    if isinstance(node, ast.Break | ast.Continue):
        yield source.replace(node, "continue" if isinstance(node, ast.Break) else "break")


def _branches(node: ast.AST, source: Source) -> Iterator[Edit]:
    """`a if c else b` -> `b if c else a`."""
    if isinstance(node, ast.IfExp):
        yield source.swap(node.body, node.orelse)


def _default(arguments: ast.arguments, source: Source) -> Iterator[Edit]:
    """`def f(x=True)` -> `def f(x=False)`, `n=1` -> `n=2`."""
    for node in [*arguments.defaults, *(item for item in arguments.kw_defaults if item is not None)]:
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield source.replace(node, str(not node.value))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield source.replace(node, str(node.value + 1))


def _variable(function: Function, nodes: list[ast.AST], source: Source) -> Iterator[Edit]:
    """One parameter used for another."""
    names = [
        arg.arg for arg in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs) if arg.arg not in ("self", "cls")
    ]
    for node in nodes if len(names) > 1 else []:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
            yield source.replace(node, names[names.index(node.id) - 1])


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


KINDS: dict[str, Callable[[ast.AST, Source], Iterator[Edit]]] = {
    "comparison": _comparison,
    "off_by_one": _off_by_one,
    "condition": _condition,
    "negation": _negation,
    "boolean": _boolean,
    "arithmetic": _arithmetic,
    "augmented": _augmented,
    "arguments": _arguments,
    "returned": _returned,
    "slice": _slice,
    "dropped": _dropped,
    "twin": _twin,
    "exception": _exception,
    "loop": _loop,
    "branches": _branches,
}
"""Kind -> operator on one node; "default" and "variable" look at the whole function."""
