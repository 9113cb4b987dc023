"""Screening: which tests call what and come where, in every Python that is here; and which of them are run for a planted bug."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import SandboxError
from sandbox.pythons import find_python
from tasks.mutate import find_mutations, mutate
from tasks.recipe import load_recipe
from tasks.screen import Run, Subject, covering_tests, is_candidate

INSIDE = Path(__file__).parent.parent / "tasks" / "inside"
MODULE = """def pick(n):
    if n > 2:
        return "big"
    for item in range(n):
        n = item
    return n


def helper(n):
    return [i for i in range(n)]


helper(1)
"""
TESTS = """import other
import pkg.a as a


def test_big():
    assert a.pick(5) == "big"


def test_small():
    assert a.pick(2) == 1


def test_neither():
    assert other.twice(2) == 4 and a.helper(2)


def test_fails():
    assert a.pick(0)
"""


def pythons():
    """Ours, and those that have another way to follow lines."""
    yield Path(sys.executable)
    for version in ("3.12", "3.13"):
        try:
            yield find_python(version) / "bin" / "python3"
        except SandboxError:
            continue


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text(MODULE)
    (tmp_path / "other.py").write_text("def twice(n):\n    return 2 * n\n")
    (tmp_path / "test_a.py").write_text(TESTS)
    return tmp_path


def record(python, folder, crowd=60):
    """What the plugin writes of a run of the tests."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{INSIDE}:{Path(pytest.__file__).parents[1]}:{folder}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    env |= {"PYTEST_ADDOPTS": "-p greengrad_record", "GREENGRAD_RECORD": str(folder / "record.json")}
    env |= {"GREENGRAD_FOLLOW": "pkg", "GREENGRAD_CROWD": str(crowd), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_a.py"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("python", list(pythons()), ids=str)
def test_the_record_says_who_called_what_and_came_where(python, repository):
    found = record(python, repository)
    assert {test: row[0] for test, row in found["tests"].items()} == {
        "test_a.py::test_big": "passed",
        "test_a.py::test_small": "passed",
        "test_a.py::test_neither": "passed",
        "test_a.py::test_fails": "failed",
    }
    assert found["calls"]["pkg/a.py:1"] == ["test_a.py::test_big", "test_a.py::test_fails", "test_a.py::test_small"]
    assert found["calls"]["pkg/a.py:9"] == ["", "test_a.py::test_neither"] and found["calls"]["other.py:1"] == ["test_a.py::test_neither"]
    assert set(found["lines"]) == {"pkg/a.py"}
    assert found["lines"]["pkg/a.py"] == {"2": [0, 1, 3], "3": [0], "4": [1, 3], "5": [1], "6": [1, 3], "10": [2]}


@pytest.mark.parametrize("python", list(pythons()), ids=str)
def test_lines_of_a_function_that_a_crowd_calls_are_not_followed(python, repository):
    assert record(python, repository, crowd=2)["lines"]["pkg/a.py"] == {"2": [0, 1], "3": [0], "4": [1], "5": [1], "6": [1], "10": [2]}


def subject(folder, lines, calls):
    tests = sorted({test for found in calls.values() for test in found})
    recipe = load_recipe("small").model_copy(update={"max_failing": 1})
    run = Run({test: "failed" if test == "broken" else "passed" for test in tests}, {}, {}, calls, lines)
    return Subject(recipe, recipe.packages[0], folder, run)


def test_only_tests_that_pass_and_come_to_the_edit_are_run(tmp_path):
    found = {mutate(MODULE, item).split("\n")[item.line - 1].strip(): item for item in reversed(find_mutations(MODULE, "a.py"))}
    lines = {("a.py", 3): frozenset({"one"}), ("a.py", 4): frozenset({"two", "broken"}), ("a.py", 2): frozenset({"one", "two", "broken"})}
    calls = {("a.py", 1): frozenset({"one", "two", "broken"})}
    about = subject(tmp_path, lines, calls)
    assert covering_tests(found["return None"], about.baseline) == ("one",)
    assert covering_tests(found["for item in range(n - 1):"], about.baseline) == ("two",)
    assert covering_tests(found["if n >= 2:"], about.baseline) == ("one", "two")
    never = next(item for item in find_mutations(MODULE, "a.py") if item.kind == "variable" and item.line == 5)
    assert covering_tests(never, about.baseline) == () and not is_candidate(never, about)
    assert is_candidate(found["return None"], about)
    at_import = subject(tmp_path, lines, {("a.py", 1): frozenset({"one", ""})})
    assert not is_candidate(found["return None"], at_import)
    crowd = subject(tmp_path, lines, {("a.py", 1): frozenset({"one", "two", "broken", "four"})})
    assert not is_candidate(found["return None"], crowd)
