"""Planted bugs: small, real, reproducible, and of every kind."""

import ast
import inspect
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.mutate import Mutation, choose_mutations, find_mutations, mutate
from tasks.operators import KINDS
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
    assert {mutation.kind for mutation in find(max_lines=20)} == {*KINDS, "default", "variable"}


def test_a_mutation_changes_exactly_one_line_and_says_which():
    for mutation in find(max_lines=20):
        before, after = SOURCE.split("\n"), mutate(SOURCE, mutation).split("\n")
        assert [at + 1 for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [mutation.line]
        ast.parse("\n".join(after))


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


LIBRARY = [textwrap, inspect, ast]


@pytest.mark.parametrize("module", LIBRARY, ids=lambda module: module.__name__)
def test_real_modules_keep_every_other_byte(module):
    source = Path(module.__file__).read_text(encoding="utf-8")
    found = find(source, max_lines=12)
    assert len(found) > 10
    for mutation in found[::7]:
        changed = mutate(source, mutation).encode()
        assert changed[: mutation.start] == source.encode()[: mutation.start]
        assert changed.endswith(source.encode()[mutation.end :])


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
