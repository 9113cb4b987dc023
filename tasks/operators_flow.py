"""The kinds of bug in statements, names and signatures: a part that is missing or the wrong one; knows nothing of files or tests."""

from collections.abc import Callable, Iterator

import libcst as cst

from .operators import EXPRESSIONS, FLAGS, Operator
from .spans import Code, Edit

_ERRORS = {
    "ValueError": "KeyError",
    "KeyError": "IndexError",
    "IndexError": "KeyError",
    "TypeError": "ValueError",
    "AttributeError": "KeyError",
}


def _dropped(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """A call for its effect, or an assignment to an attribute or item, that does not happen."""
    match node:
        case cst.Expr(value=cst.Call()):
            yield code.replace(node, "pass")
        case cst.Assign(targets=targets) if all(isinstance(item.target, cst.Attribute | cst.Subscript) for item in targets):
            yield code.replace(node, "pass")


def _exception(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`except KeyError` -> `except IndexError`, `raise ValueError` -> `raise KeyError`."""
    match node:
        case cst.ExceptHandler(type=name) | cst.Raise(exc=cst.Call(func=name)) | cst.Raise(exc=name):
            if isinstance(name, cst.Name) and name.value in _ERRORS:
                yield code.replace(name, _ERRORS[name.value])


def _loop(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`break` <-> `continue`."""
    if isinstance(node, cst.Break | cst.Continue):
        yield code.replace(node, "continue" if isinstance(node, cst.Break) else "break")


def _missing_branch(code: Code) -> Iterator[Edit]:
    """An `if` without `else`, an `elif` or an `else` is not there, nor the comment above it; `pass` where its block would be empty."""
    for block in (code.body, *(node.body for node in code.nodes if isinstance(node, cst.IndentedBlock))):
        for statement in block:
            if isinstance(statement, cst.If) and statement.orelse is None:
                yield code.replace(statement, "pass") if len(block) == 1 else _without(code, statement, statement.body)
    for node in code.nodes:
        if isinstance(node, cst.If) and node.orelse is not None:
            yield _without(code, node.orelse, node.orelse.body)


def _without(code: Code, branch: cst.If | cst.Else, body: cst.CSTNode) -> Edit:
    """A branch gone, in whole lines; what follows it in its chain stays."""
    first, last = code.lines(code.span(branch)[0], code.span(body)[1])
    for above in reversed(branch.leading_lines):
        if above.comment is None:
            break
        first -= 1
    return (*code.source.block(first, last), "")


def _removed_body(code: Code) -> Iterator[Edit]:
    """Nothing is done: signature and docstring stay, the statements (two or more) are `pass`."""
    if len(code.body) > 1:
        yield code.span(code.body[0])[0], code.span(code.body[-1])[1], "pass"


def _default(code: Code) -> Iterator[Edit]:
    """`def f(x=True)` -> `def f(x=False)`, `n=1` -> `n=2`."""
    for parameter in _parameters(code.function):
        match parameter.default:
            case cst.Name(name) as flag if name in FLAGS:
                yield code.replace(flag, FLAGS[name])
            case cst.Integer() as number:
                yield code.replace(number, str(number.evaluated_value + 1))


def _parameters(function: cst.FunctionDef) -> list[cst.Param]:
    return [*function.params.posonly_params, *function.params.params, *function.params.kwonly_params]


def _variable(code: Code) -> Iterator[Edit]:
    """A name read for another: the one that got its value just before it, in a circle, of those that surely have one by then."""
    known = dict(_assigned(code))
    written = {id(name) for node in code.nodes for name in _not_read(node)}
    for node in code.nodes:
        if isinstance(node, cst.Name) and node.value in known and id(node) not in written:
            line = code.source.line(code.span(node)[0])
            usable = [name for name, since in known.items() if since < line or name == node.value]
            yield code.replace(node, usable[usable.index(node.value) - 1])


def _assigned(code: Code) -> Iterator[tuple[str, int]]:
    """(name, line where it first gets a value; 0 for parameters) of the names that no branch decides on."""
    found: list[tuple[str, int]] = [(item.name.value, 0) for item in _parameters(code.function) if item.name.value not in ("self", "cls")]
    for statement in code.body:
        parts = statement.body if isinstance(statement, cst.SimpleStatementLine) else (statement,)
        for part in parts:
            if isinstance(part, cst.Assign | cst.AnnAssign | cst.For):
                start, end = code.span(part)
                line = code.source.line(start if isinstance(part, cst.For) else end)
                found += [(name.value, line) for name in _written(part)]
    return (item for at, item in enumerate(found) if item[0] not in {name for name, _ in found[:at]})


def _written(node: cst.Assign | cst.AnnAssign | cst.For) -> Iterator[cst.Name]:
    for target in node.targets if isinstance(node, cst.Assign) else (node,):
        yield from _targets(target.target)


def _not_read(node: cst.CSTNode) -> Iterator[cst.Name]:
    """The names that a node writes, or that are no variables at all (attributes, keywords)."""
    match node:
        case cst.AssignTarget(target=target) | cst.AugAssign(target=target) | cst.AnnAssign(target=target) | cst.Del(target=target):
            yield from _targets(target)
        case cst.For(target=target) | cst.CompFor(target=target) | cst.NamedExpr(target=target) | cst.AsName(name=target):
            yield from _targets(target)
        case cst.Attribute(attr=cst.Name() as name) | cst.Arg(keyword=cst.Name() as name) | cst.Param(name=cst.Name() as name):
            yield name
        case cst.FunctionDef(name=name) | cst.ClassDef(name=name) | cst.NameItem(name=name):
            yield name


def _targets(target: cst.CSTNode) -> Iterator[cst.Name]:
    match target:
        case cst.Name():
            yield target
        case cst.Tuple(elements=elements) | cst.List(elements=elements):
            for element in elements:
                yield from _targets(element.value)


STATEMENTS: dict[str, Operator] = {"dropped": _dropped, "exception": _exception, "loop": _loop}
FUNCTIONS: dict[str, Callable[[Code], Iterator[Edit]]] = {
    "default": _default,
    "variable": _variable,
    "missing_branch": _missing_branch,
    "removed_body": _removed_body,
}
KINDS = (*EXPRESSIONS, *STATEMENTS, *FUNCTIONS)
"""All kinds of single edits; mutate.py makes "combined" of two."""


def edits(code: Code) -> Iterator[tuple[str, Edit]]:
    """Every (kind, edit) of a function: its body, docstring apart, and its defaults."""
    for kind, operator in (EXPRESSIONS | STATEMENTS).items():
        yield from ((kind, edit) for node in code.nodes for edit in operator(node, code))
    for kind, whole in FUNCTIONS.items():
        yield from ((kind, edit) for edit in whole(code))
