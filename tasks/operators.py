"""The kinds of bug in one expression, a function each: a syntax node -> wrong text for it; knows nothing of files or tests.

An edit touches as little text as it can (an operator, a name, a constant), in the author's own formatting, so that the place
does not give itself away by a change of quotes or spaces. Bugs of whole statements are in operators_flow.py.
"""

from collections.abc import Callable, Iterator

import libcst as cst

from .spans import Code, Edit

Operator = Callable[[cst.CSTNode, Code], Iterator[Edit]]
_COMPARE: dict[type[cst.CSTNode], str] = {
    cst.LessThan: "<=",
    cst.LessThanEqual: "<",
    cst.GreaterThan: ">=",
    cst.GreaterThanEqual: ">",
    cst.Equal: "!=",
    cst.NotEqual: "==",
    cst.Is: "is not",
    cst.IsNot: "is",
    cst.In: "not in",
    cst.NotIn: "in",
}
_ARITHMETIC: dict[type[cst.CSTNode], str] = {
    cst.Add: "-",
    cst.Subtract: "+",
    cst.Multiply: "+",
    cst.Divide: "//",
    cst.FloorDivide: "/",
    cst.Modulo: "//",
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_METHODS = {"startswith": "endswith", "lstrip": "rstrip", "lower": "upper", "keys": "values", "append": "extend", "find": "rfind"}
_METHODS |= {new: old for old, new in _METHODS.items()}
FLAGS = {"True": "False", "False": "True"}
"""libcst has names for them, not constants."""
_TEXT = (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString)


def _loop_bound(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`range(n)` -> `range(n - 1)`, `range(1, n)`; `for x in y[1:]` -> `for x in y`; `while a < b` -> `while a <= b`."""
    match node:
        case cst.Call(func=cst.Name("range"), args=[arg]) if not (arg.star or arg.keyword):
            yield code.replace(arg, f"{code.text(arg)} - 1")
            yield code.replace(arg, f"1, {code.text(arg)}")
        case cst.Call(func=cst.Name("range"), args=[_, arg]) if not (arg.star or arg.keyword):
            yield code.replace(arg, f"{code.text(arg)} - 1")
        case cst.For(iter=cst.Subscript(slice=[cst.SubscriptElement(cst.Slice())]) as sliced):
            yield code.replace(sliced, code.text(sliced.value))
        case cst.While(test=cst.Comparison() as test):
            yield from _comparison(test, code)


def _comparison(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`a < b` -> `a <= b`, `x in y` -> `x not in y`."""
    match node:
        case cst.Comparison(comparisons=[cst.ComparisonTarget(operator)]):
            yield code.replace(operator, _COMPARE[type(operator)])


def _off_by_one(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """A small integer, one too high or too low."""
    if isinstance(node, cst.Integer) and node.evaluated_value <= 1000:
        value, start = node.evaluated_value, code.span(node)[0]
        yield code.replace(node, str(value + 1))
        if value > 1 or (value == 1 and code.source.raw[start - 1 : start] != b"-"):
            yield code.replace(node, str(value - 1))


def _condition(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`if x:` -> `if not x:`."""
    match node:
        case cst.If(test=test) | cst.While(test=test) | cst.IfExp(test=test) if isinstance(test, cst.Name | cst.Call | cst.Attribute):
            yield code.replace(test, f"not {code.text(test)}")


def _negation(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`not x` -> `x`."""
    match node:
        case cst.UnaryOperation(operator=cst.Not(), expression=inner):
            yield code.replace(node, code.text(inner))


def _boolean(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`a and b` -> `a or b`."""
    if isinstance(node, cst.BooleanOperation):
        yield code.replace(node.operator, "or" if isinstance(node.operator, cst.And) else "and")


def _arithmetic(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`a + b` -> `a - b`; not beside text, where it would fail at once."""
    match node:
        case cst.BinaryOperation(left=left, operator=operator, right=right) if type(operator) in _ARITHMETIC:
            if not isinstance(left, _TEXT) and not isinstance(right, _TEXT):
                yield code.replace(operator, _ARITHMETIC[type(operator)])


def _augmented(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`x += y` -> `x -= y`, `x = y`."""
    if isinstance(node, cst.AugAssign) and isinstance(node.operator, cst.AddAssign | cst.SubtractAssign):
        if not isinstance(node.value, _TEXT):
            yield code.replace(node.operator, "-=" if isinstance(node.operator, cst.AddAssign) else "+=")
        yield code.replace(node.operator, "=")


def _arguments(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`f(a, b)` -> `f(b, a)`."""
    match node:
        case cst.Call(args=[first, second, *_]) if not (first.star or second.star or first.keyword or second.keyword):
            yield code.swap(first, second)


def _returned(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`return x` -> `return None`; `return a, b` -> `return b, a`; True and False change places."""
    match node:
        case cst.Return(value=cst.Tuple(elements=[first, second])):
            yield code.swap(first, second)
        case cst.Return(value=cst.Name(name) as value) if name in FLAGS:
            yield code.replace(value, FLAGS[name])
        case cst.Return(value=cst.BaseExpression() as value) if code.text(value) != "None":
            yield code.replace(value, "None")


def _slice(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`x[1:]` -> `x[:1]`, `x[:n]` -> `x[n:]`, `x[a:b]` -> `x[a:b + 1]`."""
    match node:
        case cst.Slice(lower=cst.BaseExpression() as lower, upper=None, step=None):
            yield code.replace(node, f":{code.text(lower)}")
        case cst.Slice(lower=None, upper=cst.BaseExpression() as upper, step=None):
            yield code.replace(node, f"{code.text(upper)}:")
        case cst.Slice(upper=cst.BaseExpression() as upper, step=None):
            yield code.replace(upper, f"{code.text(upper)} + 1")


def _twin(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """The neighbour of a well-known function: min for max, any for all, startswith for endswith."""
    match node:
        case cst.Call(func=cst.Name(name) as called) if name in _FUNCTIONS:
            yield code.replace(called, _FUNCTIONS[name])
        case cst.Attribute(attr=cst.Name(name) as called) if name in _METHODS:
            yield code.replace(called, _METHODS[name])


def _branches(node: cst.CSTNode, code: Code) -> Iterator[Edit]:
    """`a if c else b` -> `b if c else a`."""
    if isinstance(node, cst.IfExp):
        yield code.swap(node.body, node.orelse)


EXPRESSIONS: dict[str, Operator] = {
    "loop_bound": _loop_bound,
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
    "twin": _twin,
    "branches": _branches,
}
"""Kind -> operator on one node. An edit that two of them make is the first one's."""
