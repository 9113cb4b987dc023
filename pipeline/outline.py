"""Where the functions of a Python file are, by its syntax tree; knows nothing of sandboxes. The text is data: it is never run."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST = 400_000
"""Characters; a larger file is not parsed (a parse blocks the loop for about a second per million)."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or class: lines first..last (1-based, decorators included)."""

    name: str
    """Class.method for a method."""
    first: int
    last: int
    is_class: bool


@dataclass(frozen=True, slots=True)
class Unparsed:
    """The text is no Python that can be read here."""

    reason: str


def outline(text: str) -> list[Definition] | Unparsed:
    """The definitions of a module and of its classes, in order."""
    if len(text) > LARGEST:
        return Unparsed("the file is too large to outline")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return Unparsed(f"line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return Unparsed(f"{type(error).__name__}: {error}")
    return list(_definitions(tree.body, ""))


def find(definitions: list[Definition], name: str) -> list[Definition]:
    """Those with this qualified name, else those whose last part it is."""
    exact = [one for one in definitions if one.name == name]
    return exact or [one for one in definitions if one.name.rpartition(".")[2] == name]


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[Definition]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                is_class = isinstance(node, ast.ClassDef)
                yield Definition(prefix + node.name, first, node.end_lineno or node.lineno, is_class)
                if is_class:
                    yield from _definitions(node.body, f"{prefix}{node.name}.")
            case ast.If() | ast.Try() | ast.With():
                yield from _definitions(node.body, prefix)
                yield from _definitions(getattr(node, "orelse", []), prefix)
            case _:
                pass
