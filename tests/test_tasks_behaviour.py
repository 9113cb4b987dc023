"""Problem statements as a user would report them, from the real output of pytest: what is said, and what never is."""

import os
import subprocess
import sys

import pytest

from tasks.behaviour import describe
from tasks.failures import Failure, read_failures
from tasks.mutate import Mutation
from tasks.snippet import find_snippet

CODE = """
def grow(n):
    if n == 3:
        return _inner()
    return n + 1


def _inner(needed):
    return needed


class Refused(Exception):
    pass


def compare(one, other):
    if one != other:
        raise AssertionError
"""
TESTS = '''import unittest
from collections import deque

import calc
import pytest

from calc import grow

OTHER_CASES = [(1, 2)]
CASES = [(6, "six")]
COUNTED = list(range(8, 9))
START = {1: 2}
OTHER = {5: 6}


def check(n, expected):
    assert grow(n) == expected


def test_a_loop():
    """Not told."""
    unused = 4
    table = dict(START)
    table.update({2: 3})
    for key, value in table.items():
        assert grow(key) == (
            value + 1
        ), "message"


@pytest.mark.parametrize("a, b", [(4, 5), (1, 3), (-2, "x-y")])
def test_cases(a, b):
    assert grow(a) == b


@pytest.mark.parametrize("given, wanted", OTHER_CASES + CASES)
def test_cases_of_a_name(given, wanted):
    assert wanted == calc.grow(given)


@pytest.mark.parametrize("word", ["a word that is so long that the name of the test takes all of a line of"])
def test_long_names(word):
    assert grow(1) == word


@pytest.mark.parametrize("given", COUNTED)
def test_counted(given):
    assert grow(given - 1) == given + 1


def test_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert grow(1) == 9


def test_an_exception_of_a_module():
    raise calc.Refused("no")


def test_a_check_elsewhere():
    wanted = 3
    calc.compare(grow(1), wanted)


def test_turned_round():
    assert [3] == list(map(grow, [1]))


def test_a_function_of_its_own():
    check(2, 4)


def test_nothing_raised():
    with pytest.raises(ValueError):
        grow(1)


def test_an_exception_from_inside():
    found = [grow(3)]
    assert found == [5]


def test_a_method():
    queue = deque([grow(1)])
    assert queue.pop() == 3


class TestOld(unittest.TestCase):
    def setUp(self):
        self.value = 5
        self.other = 6

    def test_equal(self):
        self.assertEqual(grow(self.value), 7)

    def test_lists(self):
        self.assertEqual([7, 2], [grow(self.value), 2])

    def test_true(self):
        self.assertTrue(grow(self.value) is None)
'''
BUG = Mutation("returned", "calc.py", "grow", 2, 5, 0, 0, "")
INNER = Mutation("dropped", "calc.py", "_inner", 8, 9, 0, 0, "")


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, Failure]:
    """Name of the test -> its failure, as pytest told it."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "tests").mkdir()
    (folder / "calc.py").write_text(CODE)
    (folder / "tests" / "test_calc.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-rA", "--show-capture=no", "--tb=short", "-o", f"pythonpath={folder}", "-o", "addopts="]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*command, "tests"], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    ids = [line[7:].split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    found = read_failures(done.stdout, ids)
    assert {failure.test for failure in found} == set(ids), done.stdout
    return {failure.test.split("::")[-1]: failure for failure in found}


def told(failures, *names: str, mutation: Mutation = BUG, secrets: tuple[str, ...] = ()) -> str:
    return describe("calc 1.0", mutation, [failures[name] for name in names], lambda path: TESTS, secrets)


def test_what_was_called_what_came_and_what_was_expected(failures):
    text = told(failures, "test_cases[1-3]")
    assert (
        text
        == "calc 1.0 gives a wrong result.\n\n    a = 1\n    b = 3\n    assert grow(a) == b\n\n`grow(1)` gives `2`, but `3` was expected.\n"
    )


@pytest.mark.parametrize(
    "name, said",
    [
        ("test_cases[-2-x-y]", '    a = -2\n    b = "x-y"\n'),
        (
            "test_cases_of_a_name[6-six]",
            '    given = 6\n    wanted = "six"\n    assert wanted == calc.grow(given)\n\n'
            "`calc.grow(6)` gives `7`, but `'six'` was expected.",
        ),
        (
            "test_counted[8]",
            "    assert grow(given - 1) == given + 1\n\n`grow((8 - 1))` gives `8`, but `(8 + 1)` was expected. The case is `8`.",
        ),
        ("test_elsewhere", "    assert grow(1) == 9\n\n`grow(1)` gives `2`, but `9` was expected."),
        ("test_an_exception_of_a_module", "It raises `Refused: no`."),
        ("test_a_check_elsewhere", "    wanted = 3\n    calc.compare(grow(1), wanted)\n\nThis check fails.\n"),
        ("test_turned_round", "`list(map(grow, [1]))` gives `[2]`, but `[3]` was expected."),
        ("test_a_function_of_its_own", "    check(2, 4)\n\nThe result is `3`, but `4` was expected."),
        ("test_nothing_raised", "No `ValueError` is raised, but one was expected."),
        ("test_a_method", "    queue = deque([grow(1)])\n    assert queue.pop() == 3\n\n`queue.pop()` gives `2`, but `3` was expected."),
        ("test_equal", "    self.value = 5\n    self.assertEqual(grow(self.value), 7)\n\nThe result is `6`, but `7` was expected."),
        ("test_lists", "The result is `[6, 2]`, but `[7, 2]` was expected."),
        ("test_true", "It fails: `AssertionError: False is not true`."),
    ],
)
def test_each_kind_of_assertion_is_told(failures, name, said):
    assert said in told(failures, name)


def test_only_what_leads_to_the_failure_is_shown(failures):
    text = told(failures, "test_a_loop")
    assert "    START = {1: 2}\n    table = dict(START)\n    table.update({2: 3})\n    for key, value in table.items():\n" in text
    assert not [word for word in ("unused", "OTHER", "Not told", "self.other", "test_") if word in text]


def test_the_plainest_of_several_failures_is_told(failures):
    assert told(failures, *failures) == told(failures, "test_elsewhere")


def test_neither_files_nor_functions_inside_are_named(failures):
    inside = "test_an_exception_from_inside"
    assert "_inner() missing" in failures[inside].message
    assert told(failures, inside, mutation=INNER) == "calc 1.0 fails.\n\n    found = [grow(3)]\n\nIt raises `TypeError`.\n"
    for name in failures:
        assert ".py" not in told(failures, name, mutation=INNER) and "_inner" not in told(failures, name, mutation=INNER)


def test_a_line_of_the_fix_is_never_told(failures):
    assert "queue.pop()" in told(failures, "test_a_method", secrets=("    n = n + 1",))
    hidden = told(failures, "test_a_method", secrets=("    queue = deque( [grow(1)] )",))
    assert hidden == "calc 1.0 gives a wrong result.\n\n`queue.pop()` gives `2`, but `3` was expected.\n"
    short = told(failures, "test_cases[1-3]", secrets=("b = 3",))
    assert short == "calc 1.0 gives a wrong result.\n\n`grow(1)` gives `2`, but `3` was expected.\n"
    assert told(failures, "test_true", secrets=("x", "self.value = 5", "AssertionError: False is not true")) == ""


def test_of_a_long_block_what_stands_around_the_failure_is_shown():
    long = [f"        other = {number}" for number in range(40)]
    loop = ["    for value in (1, 2):", "        if value:", "            found = value", "            assert found == 3"]
    source = "\n".join(["def test_it():", "    unused = 0", *loop, *long, ""])
    found = find_snippet(source, 6)
    assert found is not None and found.text.splitlines() == [line[4:] for line in loop] and found.complete


def test_a_line_outside_of_any_function_has_no_snippet():
    assert find_snippet("x = 1\n", 1) is None


def test_of_a_long_way_to_the_failure_the_end_is_shown():
    lines = [f"    value = value + {number}" for number in range(40)]
    source = "\n".join(["def test_it():", "    value = 0", *lines, "    assert value == 1", ""])
    found = find_snippet(source, 43)
    assert found is not None and found.text.splitlines() == [line.strip() for line in [*lines[-13:], "assert value == 1"]]
