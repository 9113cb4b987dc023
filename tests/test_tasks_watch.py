"""Source under test that changes its own hidden tests, or adds conftest.py files, while the tests run: real machines of both backends."""

from dataclasses import replace

import pytest

from sandbox import Limits
from tasks import Evidence, Outcome, grade, toy_suite
from tasks.patches import diff_text
from tasks.script import eval_script, pytest_command

LIMITS = Limits(memory_mb=256, pids=64, disk_mb=64)
BUG = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a * 2\n"
FIX = BUG.replace("a - b", "a + b")
FIRST = "from calc import double\n\n\ndef test_double():\n    assert double(4) == 8\n"
LATER = "from calc import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
IDS = ("tests/test_first.py::test_double", "tests/z/test_later.py::test_add")
SWAP = """import os

def write(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)

"""
EARLY = {"tests/conftest.py": "import calc\n"}
"""A conftest.py of the task's own that imports the source before the session begins."""
EMPTY = "def test_add():\n    pass\n"
CONFTEST = "def pytest_collection_modifyitems(items):\n    for item in items:\n        item.obj = lambda: None\n"
RUNNER = """import _pytest.python

_pytest.python.Function.runtest = lambda self: None
"""
RECORDS = """import os
import sys

write = getattr(sys.modules["greengrad_witness"], "_write", None)
if write is not None:
    for test in {ids!r}:
        for when in ("setup", "call", "teardown"):
            write({{"id": test, "when": when, "raised": "", "outcome": "passed", "xfail": False}})
    write({{"end": 0, "changed": [], "rewritten": []}})
lines = "".join(f"PASSED {{test}}\\n" for test in {ids!r})
for number in range(3, 64):  # pytest's copy of what it captures
    try:
        if os.readlink(f"/proc/self/fd/{{number}}") == os.readlink(f"/proc/{{os.getppid()}}/fd/1"):
            os.write(number, lines.encode())
    except OSError:
        pass
os._exit(0)
"""


def several(task, more=None):
    """The toy task with its tests in two modules, the later in a folder of its own, and `more` files in its test patch."""
    files = {"tests/test_first.py": FIRST, "tests/z/test_later.py": LATER} | (more or {})
    tests = "".join(diff_text(path, None, text) for path, text in files.items())
    script = eval_script(task.base_commit, tests, pytest_command(["."], ["tests"]))
    return replace(task, test_patch=tests, eval_script=script, fail_to_pass=IDS[1:], pass_to_pass=IDS[:1])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_suite(tmp_path_factory.mktemp("toy")).tasks[0]


async def graded(backend, task, source):
    return await grade(backend, task, diff_text("calc.py", BUG, source), LIMITS)


HOSTILE = {
    "a later module": (False, SWAP + f"write('tests/z/test_later.py', {EMPTY!r})\n", "files of the tests were changed"),
    "a later module that puts itself back": (
        False,
        SWAP + f"write('tests/z/test_later.py', {EMPTY + SWAP + f'write(__file__, {LATER!r})'!r})\n",
        "files of the tests were changed",
    ),
    "a conftest.py in a folder to come": (False, SWAP + f"write('tests/z/conftest.py', {CONFTEST!r})\n", "z/conftest.py"),
    "a module, before the session": (True, SWAP + f"write('tests/z/test_later.py', {EMPTY!r})\n", "files of the tests were changed"),
    "the runner, before the session": (True, RUNNER, "functions of the test runner were replaced"),
    "the record, before the session": (True, RECORDS.format(ids=IDS), "did not come to its end"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_tests_that_the_source_changes_make_a_resolved_log_suspect(name, backend, toy):
    conftest, source, words = HOSTILE[name]
    verdict = await graded(backend, several(toy, EARLY if conftest else None), source + BUG)
    assert verdict.official, f"else this test shows nothing: {verdict.log}"
    assert (verdict.outcome, verdict.reward, verdict.evidence) == (Outcome.SUSPECT, 0.0, Evidence.WITNESSED)
    assert words in verdict.reason, verdict.reason


@pytest.mark.parametrize("conftest", [False, True])
async def test_a_true_fix_of_several_modules_is_resolved(conftest, backend, toy):
    verdict = await graded(backend, several(toy, EARLY if conftest else None), FIX)
    assert (verdict.outcome, verdict.reason, verdict.official) == (Outcome.RESOLVED, "", True), verdict.log


async def test_the_hidden_tests_are_read_only_while_they_run(backend, toy):
    ask = "import os\n\nassert not any(os.stat(f'tests/{name}').st_mode & 0o222 for name in ('test_first.py', 'z/test_later.py'))\n"
    assert (await graded(backend, several(toy), ask + FIX)).outcome is Outcome.RESOLVED
    write = "open('tests/z/test_later.py', 'w')\n"
    verdict = await graded(backend, several(toy), write + FIX)
    assert verdict.outcome is Outcome.UNRESOLVED and "PermissionError" in verdict.log


async def test_an_exit_code_that_the_session_did_not_have_is_suspect(backend, toy):
    task = several(
        toy, more={"tests/z/test_more.py": "def test_more():\n    assert False\n"}
    )  # fails, and is not one of the declared tests
    assert (await graded(backend, task, FIX)).outcome is Outcome.RESOLVED
    verdict = await graded(backend, task, "import atexit, os, sys\n\natexit.register(lambda: (sys.stdout.flush(), os._exit(0)))\n" + FIX)
    assert (verdict.outcome, verdict.official) == (Outcome.SUSPECT, True), verdict.log
    assert verdict.reason == "the log says resolved, but it tells the exit code 0, and the test session ended with 1"


async def test_a_declared_test_that_did_not_run_is_suspect(backend, toy):
    """The log names it, pytest has never heard of it."""
    line = "b'PASSED tests/z/test_gone.py::test_gone\\n'"
    said = f"import atexit, os, sys\n\natexit.register(lambda: (sys.stdout.flush(), os.write(1, {line})))\n"
    task = several(toy)
    task = replace(task, pass_to_pass=(*task.pass_to_pass, "tests/z/test_gone.py::test_gone"))
    verdict = await graded(backend, task, said + FIX)
    assert (verdict.outcome, verdict.official) == (Outcome.SUSPECT, True), verdict.log
    assert verdict.reason == "the log says resolved, but these did not pass: tests/z/test_gone.py::test_gone"


async def test_without_a_witness_a_verdict_rests_on_the_log_and_says_so(backend, toy):
    """Environments that are not ours, and other runners: what the log says is believed, also where it lies."""
    task = replace(several(toy), requirements=())
    lines = "".join(f"PASSED {test}\n" for test in IDS).encode()
    lie = f"import atexit, os, sys\n\natexit.register(lambda: (sys.stdout.flush(), os.write(1, {lines!r}), os._exit(0)))\n"
    for source in (FIX, lie + BUG):
        verdict = await graded(backend, task, source)
        assert (verdict.outcome, verdict.official, verdict.evidence) == (Outcome.RESOLVED, True, Evidence.LOG_ONLY), verdict.log
        assert (verdict.witness, verdict.audited) == ({}, False)
    assert (await graded(backend, several(toy), lie + BUG)).outcome is Outcome.SUSPECT
