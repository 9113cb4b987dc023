"""A failing statement of a test and what leads to it, as somebody would paste it into a report; source text alone, nothing is run."""

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_LINES = 14
MAX_CHARS = 900
_SETUP = ("setUp", "setup_method", "setup")
_RECORDERS = {"capsys", "capfd", "caplog"}
"""Fixtures that hold what any statement before did."""
Node = ast.stmt | ast.ExceptHandler
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Snippet:
    """The statement that fails, parsed, and the lines to show: those that make its values, then itself."""

    failing: ast.AST
    source: str
    """Of the file, for ast.get_source_segment."""
    text: str
    given: frozenset[str]
    """Parameters of the test: what a test is given is mostly what it expects."""
    case: str
    """What the test's id has in brackets, where the snippet does not show its values."""
    complete: bool
    """Whether nothing that leads to the statement was too long to be shown."""


def find_snippet(source: str, line: int, parameters: str = "") -> Snippet | None:
    """The snippet for a line of a test file; None where no function has it. `parameters`: what the test's id has in brackets."""
    tree = ast.parse(source)
    path = _enclosing(tree, line)
    function = next((node for node in reversed(path[:-1]) if isinstance(node, Function)), None)
    if function is None:
        return None
    inside = path[path.index(function) + 1 :]
    failing = inside[-1]
    before = [*_module(tree), *_fixture(path), *_siblings(function, inside[0])]
    nested = [*before, *(node for outer, inner in pairwise(inside) for node in (_header(outer), *_siblings(outer, inner)))]
    names = frozenset(argument.arg for argument in function.args.args if argument.arg != "self")
    given = _given(function, parameters, source, tree)
    case = "" if given else parameters
    for last, first in ((inside[0], before), (failing, nested)):
        nodes = [*_needed(last, first), last]
        for start in range(len(nodes) if last is failing else 1):
            text = _text(source, nodes[start:], given)
            if text.count("\n") < MAX_LINES and len(text) <= MAX_CHARS:
                return Snippet(failing, source, text, names, case, start == 0)
    return Snippet(failing, source, "", names, parameters, False)


def _enclosing(tree: ast.Module, line: int) -> list[Node]:
    """Nodes from below the module to the innermost statement that holds a line."""
    path: list[Node] = []
    inside: list[Node] = list(tree.body)
    while found := next((node for node in inside if node.lineno <= line <= (node.end_lineno or node.lineno)), None):
        path.append(found)
        inside = [node for node in ast.iter_child_nodes(found) if isinstance(node, Node)]
    return path


def _siblings(outer: Node, inner: Node) -> list[Node]:
    """What stands before a node in the same block."""
    blocks = (block for name in ("body", "orelse", "finalbody", "handlers") if (block := getattr(outer, name, None)) and inner in block)
    return [node for block in blocks for node in block if node.lineno < inner.lineno]


def _header(node: Node) -> Node:
    """The first line of a loop, `with` or `if`, without what it holds."""
    alone = copy.copy(node)
    for name in ("body", "orelse", "finalbody", "handlers"):
        if hasattr(node, name):
            setattr(alone, name, [])
    body = getattr(node, "body", [node])
    alone.end_lineno = max(node.lineno, body[0].lineno - 1)
    return alone


def _module(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]


def _fixture(path: Sequence[ast.AST]) -> list[ast.stmt]:
    """The body of the class' set-up."""
    classes = [node for node in path if isinstance(node, ast.ClassDef)]
    functions = (node for one in classes for node in one.body if isinstance(node, Function) and node.name in _SETUP)
    return [statement for function in functions for statement in function.body if not _is_text(statement)]


def _needed(last: Node, before: Sequence[Node]) -> list[Node]:
    """Statements that bind or change what the last one uses, in order, and the headers of the blocks around it."""
    wanted, kept = _names(last), list[Node]()
    values = {name for node in before for name in _bound(node)} | _RECORDERS
    for node in reversed(before):
        acts = isinstance(node, ast.Expr | ast.With | ast.For | ast.If | ast.Delete)
        changes = acts and bool((_names(node) & wanted & values) or (wanted & _RECORDERS))
        is_header = getattr(node, "body", None) == []
        if is_header or (not _is_check(node) and not _is_text(node) and (changes or _bound(node) & wanted)):
            kept.insert(0, node)
            wanted |= _names(node)
    return kept


def _is_check(node: Node) -> bool:
    called = getattr(getattr(node, "value", None), "func", None)
    return isinstance(node, ast.Assert) or getattr(called, "attr", "").startswith("assert")


def _is_text(node: Node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _names(node: ast.AST) -> set[str]:
    """Names that a statement mentions; attributes of self count as names."""
    return set(_walk(node))


def _walk(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and child.id != "self":
            yield child.id
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "self":
            yield f"self.{child.attr}"


def _bound(node: Node) -> set[str]:
    """Names that a statement binds; also those inside of it."""
    stored = (child for child in ast.walk(node) if isinstance(child, ast.Name | ast.Attribute) and isinstance(child.ctx, ast.Store))
    found = {name for child in stored for name in _walk(child)}
    return found | ({node.name} if isinstance(node, Function | ast.ClassDef) else set())


def _text(source: str, nodes: Sequence[Node], given: Sequence[str]) -> str:
    lines = source.splitlines()
    shown = list(given)
    base = min(node.col_offset for node in nodes if node.col_offset or len(nodes) == 1)
    for node in nodes:
        part, column = lines[_start(node) - 1 : node.end_lineno], min(base, node.col_offset)
        shown += [line if line[:column].strip() else line[column:] for line in part]
    return "\n".join(line.rstrip() for line in shown)


def _start(node: Node) -> int:
    decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
    return min([node.lineno, *(one.lineno for one in decorators)])


def _given(function: Function, parameters: str, source: str, module: ast.Module) -> list[str]:
    """`name = value` for each parameter of a parametrised test, where its values are written out; none where they cannot be told."""
    marks = [node for node in function.decorator_list if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parametrize"]
    if not parameters or len(marks) != 1 or len(marks[0].args) < 2:
        return []
    first, cases = marks[0].args[0], _literal(marks[0].args[1], module)
    names = [getattr(node, "value", "") for node in first.elts] if isinstance(first, ast.List | ast.Tuple) else _split(first)
    for number, case in enumerate(cases):
        values = case.elts if len(names) > 1 and isinstance(case, ast.Tuple | ast.List) else [case]
        if "-".join(_id(value, name, number) for name, value in zip(names, values, strict=False)) == parameters:
            return [f"{name} = {ast.get_source_segment(source, value)}" for name, value in zip(names, values, strict=False)]
    return []


def _literal(node: ast.expr, module: ast.Module) -> list[ast.expr]:
    """The items of a list that is written there, or at the top of the file under that name, or of a sum of such lists."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_literal(node.left, module), *_literal(node.right, module)]
    if isinstance(node, ast.Name):
        values = (one.value for one in _module(module) if node.id in _bound(one) and isinstance(one, ast.Assign))
        node = next(values, node)
    return node.elts if isinstance(node, ast.List | ast.Tuple) else []


def _split(names: ast.expr) -> list[str]:
    return [name.strip() for name in names.value.split(",")] if isinstance(names, ast.Constant) and isinstance(names.value, str) else []


def _id(value: ast.expr, name: str, number: int) -> str:
    """What pytest writes for a value in a test's id."""
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        return f"-{_id(value.operand, name, number)}"
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value.encode("unicode_escape").decode()
    if isinstance(value, ast.Constant) and isinstance(value.value, int | float | None):
        return str(value.value)
    return f"{name}{number}"
