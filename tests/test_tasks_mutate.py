"""Planted bugs: small, real, reproducible, and of every kind."""

import ast
import bisect
import difflib
import inspect
import shlex
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.mutate import Mutation, choose_mutations, find_mutations, mutate
from tasks.operators_flow import KINDS
from tasks.plant import restored_lines, tells
from tasks.statement import write_statement

SOURCE = '''
import re


def pick(items, low=0, strict=True):  # é: columns count bytes
    """Docstring with 1 and a < b."""
    found = []
    for item in items[low:]:
        if not item or item is None:
            continue
        if item < 10 and strict:
            found.append(max(item, low) + 1)
    return found if found else None


class Box:
    @property
    def size(self):
        try:
            return self.width * self.height, self.depth
        except KeyError:
            raise ValueError("no size")

    def count(self, text, word):
        total = 0
        while text.startswith(word):
            total += 1
            text = text[len(word):]
            self.seen = total
            if total > 5:
                break
        return text.find(word, total) == "é"
'''


def find(source=SOURCE, **limits):
    return find_mutations(source, "pkg/box.py", **limits)


def test_every_kind_of_bug_occurs():
    assert {mutation.kind for mutation in find(max_lines=20)} == {*KINDS, "combined"}


CASES = {
    "loop_bound": ("for i in range(n):", ["for i in range(n - 1):", "for i in range(1, n):"]),
    "loop_bound ": ("for i in range(2, n):", ["for i in range(2, n - 1):"]),
    "loop_bound  ": ("for i in a[1:]:", ["for i in a:"]),
    "loop_bound   ": ("while a < n:", ["while a <= n:"]),
    "comparison": ("b = (a) not  in n", ["b = (a) in n"]),
    "comparison ": ("if a is not None:", ["if a is None:"]),
    "off_by_one": ("b = a[1]", ["b = a[2]", "b = a[0]"]),
    "off_by_one ": ("b = a[-1]", ["b = a[-2]"]),
    "condition": ("if a.b:", ["if not a.b:"]),
    "negation": ("b = not (a or n)", ["b = (a or n)"]),
    "boolean": ("b = a and n and 'x'", ["b = a and n or 'x'", "b = a or n and 'x'"]),
    "arithmetic": ("b = a  //(n)", ["b = a  /(n)"]),
    "arithmetic ": ("b = 'x' + a", []),
    "augmented": ("a += n", ["a -= n", "a = n"]),
    "arguments": ("b = f((a), n, 1)", ["b = f(n, (a), 1)"]),
    "returned": ("return (a), n", ["return n, (a)"]),
    "returned ": ("return True", ["return False"]),
    "returned  ": ("return f(a)", ["return None"]),
    "slice": ("b = a[n:]", ["b = a[:n]"]),
    "slice ": ("b = a[:n]", ["b = a[n:]"]),
    "slice  ": ("b = a[1:n]", ["b = a[1:n + 1]"]),
    "twin": ("b = min(a, n)", ["b = max(a, n)"]),
    "twin ": ("a.lstrip()", ["a.rstrip()"]),
    "branches": ("b = a if n else (a, n)", ["b = (a, n) if n else a"]),
    "dropped": ("a.push(n); b = 1", ["pass; b = 1"]),
    "dropped ": ("a.b = n", ["pass"]),
    "exception": ("raise ValueError('no')", ["raise KeyError('no')"]),
    "variable": ("b = f(a, key=n.a)", ["b = f(n, key=n.a)", "b = f(a, key=a.a)"]),
}
"""Kind -> one line of a function of (a, n), and what all its mutations of this kind make of it."""


@pytest.mark.parametrize("kind", CASES)
def test_an_expression_goes_wrong_as_its_kind_says(kind):
    line, expected = CASES[kind]
    rest = "        pass\n" if line.endswith(":") else ""
    source = f"def f(a, n):\n    {line}\n{rest}    return\n"
    found = [mutate(source, mutation).split("\n")[1].strip() for mutation in find(source) if mutation.kind == kind.strip()]
    assert found == expected


BLOCKS = """
class A:
    def f(self, a, flag=True, n=0):
        '''Docstring.'''
        while a:
            if n:
                break
        # why
        if a:
            n = 1  # one
        if n:
            return 1
        elif a:
            return 2
        # nothing else
        else:
            b = f(a)
            return b
        try:
            pass
        except KeyError:
            pass
"""


def changes(kind):
    """What mutations of a kind take from BLOCKS and put there."""
    for mutation in find(BLOCKS, max_lines=30):
        if mutation.kind == kind:
            lines = difflib.ndiff(BLOCKS.splitlines(), mutate(BLOCKS, mutation).splitlines())
            yield [f"{line[0]}{line[2:].strip()}" for line in lines if line[0] in "+-"]


def test_statements_and_signatures_go_wrong_as_their_kind_says():
    assert list(changes("loop")) == [["-break", "+continue"]]
    assert list(changes("exception")) == [["-except KeyError:", "+except IndexError:"]]
    assert [added for _, added in changes("default")] == [
        "+def f(self, a, flag=False, n=0):",
        "+def f(self, a, flag=True, n=1):",
    ]


def test_a_missing_branch_takes_its_comment_along_and_leaves_no_empty_block():
    assert list(changes("missing_branch")) == [
        ["-# why", "-if a:", "-n = 1  # one"],
        ["+pass", "-if n:", "-break"],
        ["-elif a:", "-return 2"],
        ["-# nothing else", "-else:", "-b = f(a)", "-return b"],
    ]


def test_a_removed_body_keeps_signature_and_docstring():
    mutation = next(item for item in find(BLOCKS, max_lines=30) if item.kind == "removed_body")
    head = BLOCKS[: BLOCKS.index("while")]
    assert mutate(BLOCKS, mutation) == f"{head}pass\n" and mutation.line == 5


def test_a_combined_bug_is_two_edits_of_different_statements_and_says_where_each_acts():
    source = "def f(a, b):\n    x = a + 1\n    return x * b\n"
    single = {mutate(source, item) for item in find(source) if item.kind != "combined"}
    combined = [item for item in find(source) if item.kind == "combined"]
    assert combined and combined == [item for item in find(source) if item.kind == "combined"]
    for mutation in combined:
        head, first, second, _ = mutate(source, mutation).split("\n")
        assert mutation.line == 2 and mutation.reached == ((2, 2), (3, 3))
        assert {f"{head}\n{first}\n    return x * b\n", f"{head}\n    x = a + 1\n{second}\n"} <= single


def test_a_wrong_variable_is_one_that_has_a_value_by_then():
    source = "def f(a):\n    if a:\n        low = 1\n    x = [\n        a,\n    ]\n    return x\n"
    found = [mutate(source, item) for item in find(source) if item.kind == "variable"]
    assert found == [source.replace("return x", "return a")]


def test_a_mutation_says_which_lines_a_run_must_come_to():
    reached = {(item.kind, item.line): item.reached for item in find(BLOCKS, max_lines=30)}
    assert reached["missing_branch", 8] == ((10, 10),) and reached["missing_branch", 15] == ((17, 18),)
    assert reached["default", 3] == () and reached["exception", 21] == ((21, 21),) and reached["condition", 5] == ((5, 5),)
    assert reached["removed_body", 5] == ((7, 22),)


def test_a_mutation_touches_its_function_alone_and_says_where_it_begins():
    for mutation in find(max_lines=20):
        lines, after = SOURCE.split("\n"), mutate(SOURCE, mutation).split("\n")
        ast.parse("\n".join(after))
        same = next(at for at, pair in enumerate(zip(lines, after, strict=False)) if pair[0] != pair[1])
        assert same + 1 == mutation.line or mutation.kind == "missing_branch"


def test_a_mutation_never_touches_a_docstring_and_knows_its_function():
    for mutation in find(max_lines=20):
        assert mutation.function in ("pick", "Box.size", "Box.count") and "Docstring" not in SOURCE.split("\n")[mutation.line - 1]
    assert {m.first_line for m in find() if m.function == "Box.size"} == {SOURCE.split("\n").index("    @property") + 1}


def test_only_functions_of_the_wanted_size_are_touched():
    assert {mutation.function for mutation in find(max_lines=7)} == {"Box.size"}
    assert find(min_lines=50, max_lines=60) == []


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    found = find(max_lines=20)
    first = choose_mutations(found, 3, per_function=5)
    assert first == choose_mutations(list(reversed(found)), 3, per_function=5) != choose_mutations(found, 4, per_function=5)
    kinds = {mutation.kind for mutation in first}
    assert {mutation.kind for mutation in first[: len(kinds)]} == kinds
    assert max(sum(m.function == name for m in first) for name in ("pick", "Box.size", "Box.count")) == 5
    assert len({mutation.id for mutation in found}) == len(found)


def test_source_that_does_not_parse_has_no_mutations():
    assert find("def broken(:\n    pass\n") == []


LIBRARY = [textwrap, shlex, bisect, inspect]


@pytest.mark.parametrize("module", LIBRARY, ids=lambda module: module.__name__)
def test_real_modules_keep_every_other_byte_and_change_one_function_alone(module):
    source = Path(module.__file__).read_text(encoding="utf-8")
    found = find(source, max_lines=20)
    assert len(found) > 10 and len({mutation.id for mutation in found}) == len(found)
    tree = ast.parse(source)
    places = {min(n.lineno for n in (node, *node.decorator_list)): node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    before, raw = ast.dump(tree), source.encode()
    for mutation in found[:: 1 + len(found) // 40]:
        changed = mutate(source, mutation)
        assert ast.dump(ast.parse(changed)) != before
        assert changed.encode()[: mutation.start] == raw[: mutation.start] and changed.encode().endswith(raw[mutation.end :])
        function, last = places[mutation.first_line], raw[: mutation.end].rstrip(b"\n").count(b"\n") + 1
        assert function.lineno <= mutation.line <= last <= function.end_lineno and function.name == mutation.function.split(".")[-1]
        assert all(function.lineno <= low <= high <= function.end_lineno for low, high in mutation.reached)


@given(st.sampled_from(["\n", "\r\n"]), st.text(alphabet="aé \u200b\x0c", max_size=5))
def test_line_ends_and_wide_letters_do_not_shift_an_edit(newline, comment):
    source = newline.join(["def f(a, b):", f"    # {comment}", "    if a < b:", "        return a", "    return b", ""])
    mutation = next(item for item in find(source) if item.kind == "comparison")
    assert mutate(source, mutation) == source.replace("a < b", "a <= b") and mutation.line == 3


def test_a_statement_names_the_place_quotes_the_failure_and_keeps_the_fix_to_itself():
    mutation = Mutation("returned", "pkg/a.py", "Box.size", 1, 4, 0, 1, "None")
    messages = {"t.py::test_far": "KeyError: 1", "t.py::test_size[1]": "assert None == 3\n  +  where None = <Box object at 0x7f00>.size"}
    text = write_statement(mutation, messages, "        return self.width * 2\n")
    assert "`Box.size` in `pkg/a.py`" in text and "`test_size`" in text and "assert None == 3 + where None = <Box object>.size" in text
    leaking = write_statement(mutation, {"t.py::test_it": "assert 'return self.width * 2' in source"}, "        return self.width * 2\n")
    assert "width" not in leaking
    assert len(write_statement(mutation, {"t.py::test_it": "assert " + "word " * 500}, "x = 1")) < 420


def test_no_line_that_a_fix_brings_back_is_in_a_message_that_is_quoted():
    patch = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,4 @@\n-    pass\n+    if x.y:\n+        return  self.size\n+    )\n context\n"
    restored = restored_lines(patch)
    assert restored == ("if x.y:", "return  self.size") and tells("assert 1\n  where return\n self.size", restored)
    assert not tells("assert ) == pass", restored)
