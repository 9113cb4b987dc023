"""A function as libcst reads it: its nodes, each with its place in the file's bytes, so that an edit keeps every other byte; knows no bug.

The function is parsed alone (its place is found with ast): most of a file is neither called by tests nor small, and positions are what
libcst takes longest for.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, CodeSpan, MetadataWrapper

Edit = tuple[int, int, str]
"""Replace the bytes [start, end) of the file by this text."""
_SIMPLE = cst.SimpleStatementLine | cst.SimpleStatementSuite
_HEADED = cst.BaseCompoundStatement | cst.ExceptHandler | cst.ExceptStarHandler | cst.MatchCase
_INDENTED = "if 1:\n"
"""Before an indented function, so that it parses alone."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text by lines."""

    raw: bytes
    lines: tuple[int, ...]
    """Offset of the first byte of each line, and of the end."""

    def line(self, offset: int) -> int:
        """1-based line of a byte."""
        return bisect_right(self.lines[:-1], offset)

    def block(self, first: int, last: int) -> tuple[int, int]:
        """The bytes of whole lines, 1-based and inclusive, with the line end of the last."""
        return self.lines[first - 1], self.lines[last]


def read_source(text: str) -> Source:
    """A file's text with its lines as the parser counts them (\\n, \\r\\n and \\r, not form feeds)."""
    raw = text.encode()
    ends = [match.end() for match in re.finditer(rb"\r\n|\n|\r", raw)]
    return Source(raw, (0, *ends) if ends[-1:] == [len(raw)] else (0, *ends, len(raw)))


@dataclass(frozen=True)
class Code:
    """One function: its syntax tree and where each node lies in the file."""

    source: Source
    function: cst.FunctionDef
    spans: Mapping[cst.CSTNode, CodeSpan]
    shift: int
    """What is added to an offset of `spans` to make it one of the file."""

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """The bytes of a node, its own parentheses included."""
        left, right = (node.lpar, node.rpar) if isinstance(node, cst.BaseExpression) else ((), ())
        first, last = self.spans[left[0] if left else node], self.spans[right[-1] if right else node]
        return first.start + self.shift, last.start + last.length + self.shift

    def text(self, node: cst.CSTNode) -> str:
        """A node as its author wrote it."""
        start, end = self.span(node)
        return self.source.raw[start:end].decode()

    def replace(self, node: cst.CSTNode, new: str) -> Edit:
        """Other text for a node."""
        return (*self.span(node), new)

    def swap(self, first: cst.CSTNode, second: cst.CSTNode) -> Edit:
        """Two nodes change places."""
        (start, middle), (resume, end) = self.span(first), self.span(second)
        return start, end, self.text(second) + self.source.raw[middle:resume].decode() + self.text(first)

    def lines(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last line of some bytes."""
        return self.source.line(start), self.source.line(max(start, end - 1))

    @cached_property
    def body(self) -> tuple[cst.CSTNode, ...]:
        """The statements, docstring apart."""
        found = tuple(self.function.body.body)
        return found[1:] if self.function.get_docstring(clean=False) is not None else found

    @cached_property
    def nodes(self) -> tuple[cst.CSTNode, ...]:
        """Every node of the body, docstring apart, in the order of the text."""
        if not self.body:
            return ()
        start = self.spans[self.body[0]].start
        within = [node for node, span in self.spans.items() if span.start >= start and span.length]
        return tuple(sorted(within, key=lambda node: (self.spans[node].start, -self.spans[node].length)))

    @cached_property
    def statements(self) -> tuple[tuple[tuple[int, int], bool], ...]:
        """(span, whether it is a line without a body) of the body's statements and handlers, the outer before the inner."""
        placed = (node for node in self.nodes if isinstance(node, _SIMPLE | _HEADED))
        return tuple((self.span(node), isinstance(node, _SIMPLE)) for node in placed)


def read_function(source: Source, first: int, last: int, indented: bool) -> Code | None:
    """The function in these lines, which begin with its `def`; None where libcst cannot read it."""
    start, end = source.block(first, last)
    head = _INDENTED if indented else ""
    try:
        module = cst.parse_module(head + source.raw[start:end].decode())
    except cst.ParserSyntaxError:
        return None
    spans = MetadataWrapper(module, unsafe_skip_copy=True).resolve(ByteSpanPositionProvider)
    function = next((node for node in _statements(module, indented) if isinstance(node, cst.FunctionDef)), None)
    return Code(source, function, spans, start - len(head)) if function else None


def _statements(module: cst.Module, indented: bool) -> Iterator[cst.CSTNode]:
    for node in module.body:
        yield from node.body.body if indented and isinstance(node, cst.If) else (node,)
