"""The table of outcomes, and patches that try to decide their own grade, on real machines of both backends."""

import base64
import hashlib
import json
import zlib
from dataclasses import replace

import pytest

from sandbox import DyingSandbox, FakeBackend, FakeSandbox, Limits, Pool, ResourceExhausted
from tasks import Outcome, grade, grade_untouched, toy_suite
from tasks.patches import diff_text
from tasks.swebench import read_log

BUG = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a * 2\n"
LIMITS = Limits(memory_mb=256, pids=64, disk_mb=64)
CONFTEST = """import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    result = yield
    report = result.get_result()
    report.outcome, report.longrepr = "passed", None
"""
EXIT = """import os


def pytest_sessionfinish(session, exitstatus):
    os.write(1, b"PASSED tests/test_add.py::test_add\\n")
    os._exit(0)
"""
FORGED = "PASSED tests/test_add.py::test_add\\nPASSED tests/test_add.py::test_double\\n"
AT_EXIT = f"import atexit, os\n\natexit.register(lambda: (os.write(1, b'{FORGED}'), os._exit(0)))\n"
AT_IMPORT = f"""import os

for fd in range(3, 64):
    try:
        if os.readlink(f"/proc/self/fd/{{fd}}") == os.readlink("/proc/%d/fd/1" % os.getppid()):
            os.write(fd, b"\\n{FORGED}+ : '>>>>> End Test Output'\\n")
    except OSError:
        pass
os._exit(0)
"""
RUNNER = """from _pytest.runner import CallInfo

honest = CallInfo.from_call.__func__


def lie(cls, func, *args, **kwargs):
    info = honest(cls, func, *args, **kwargs)
    object.__setattr__(info, "excinfo", None)
    return info


CallInfo.from_call = classmethod(lie)
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return {task.instance_id.split("-")[1]: task for task in toy_suite(tmp_path_factory.mktemp("toy")).tasks}


def change(path, new, old=None):
    return diff_text(path, old, new)


async def test_gold_resolves_and_the_untouched_tree_does_not(backend, toys):
    for task in toys.values():
        gold = await grade(backend, task, task.gold_patch, LIMITS)
        assert (gold.outcome, gold.reason, gold.reward) == (Outcome.RESOLVED, "", 1.0), gold.log
        assert gold.witness == {test: "PASSED" for test in (*task.fail_to_pass, *task.pass_to_pass)} == gold.tests
        untouched = await grade_untouched(backend, task, LIMITS)
        assert untouched.outcome is Outcome.UNRESOLVED and "FAIL_TO_PASS" in untouched.reason
        assert {untouched.tests[test] for test in task.fail_to_pass} == {"FAILED"}


async def test_a_patch_that_fixes_nothing_is_unresolved_and_one_that_breaks_more_says_so(backend, toys):
    verdict = await grade(backend, toys["add"], change("calc.py", BUG.replace("a * 2", "a * 3").replace("a - b", "a + b"), BUG), LIMITS)
    assert verdict.outcome is Outcome.UNRESOLVED and verdict.reward == 0.0
    assert verdict.reason == "1 of PASS_TO_PASS fail: tests/test_add.py::test_double"


async def test_an_empty_patch_is_no_patch_and_needs_no_machine(toys):
    machines = FakeBackend()
    for patch in ("", "\n \n"):
        assert (await grade(machines, toys["add"], patch)).outcome is Outcome.NO_PATCH
    assert machines.started == []


async def test_a_patch_too_large_to_look_through_is_invalid_and_needs_no_machine(toys):
    machines = FakeBackend()
    verdict = await grade(machines, toys["add"], change("big.txt", "\n" * (9 << 20)))
    assert (verdict.outcome, verdict.reward, machines.started) == (Outcome.PATCH_INVALID, 0.0, []) and "8 MiB" in verdict.reason


async def test_a_text_without_any_change_is_invalid_and_needs_no_machine(toys):
    machines = FakeBackend()
    for patch in ("I could not find the bug.", "```diff\n```", "--- a/calc.py\n+++ b/calc.py\n"):
        verdict = await grade(machines, toys["add"], patch)
        assert (verdict.outcome, verdict.reward, machines.started) == (Outcome.PATCH_INVALID, 0.0, [])


async def test_a_patch_that_lost_its_last_newline_counts_as_the_official_harness_counts_it(backend, toys):
    verdict = await grade(backend, toys["add"], toys["add"].gold_patch.rstrip("\n"), LIMITS)
    assert verdict.outcome is Outcome.RESOLVED


async def test_a_patch_that_does_not_apply_is_invalid(backend, toys):
    verdict = await grade(backend, toys["add"], change("calc.py", "x = 2\n", "x = 1\n"), LIMITS)
    assert (verdict.outcome, verdict.reward) == (Outcome.PATCH_INVALID, 0.0)


async def test_tests_over_time_count_only_when_they_are_so_twice(backend, toys):
    task = replace(toys["add"], test_seconds=3.0)
    verdict = await grade(backend, task, change("calc.py", "import time\n\ntime.sleep(60)\n" + BUG, BUG), LIMITS)
    assert verdict.outcome is Outcome.TESTS_TIMEOUT and verdict.seconds > 6 and ">>>>> Start Test Output" in verdict.log


async def test_a_source_that_does_not_parse_or_kills_the_interpreter_is_unresolved(backend, toys):
    for source in ("def add(a, b:\n", "import os\n\nos.abort()\n", "import os, signal\n\nos.kill(os.getppid(), signal.SIGKILL)\n"):
        verdict = await grade(backend, toys["add"], change("calc.py", source, BUG), LIMITS)
        assert verdict.outcome is Outcome.UNRESOLVED, source


async def test_a_source_that_eats_memory_or_processes_is_unresolved_and_no_fault_of_the_machine(backend, toys):
    for source in (
        "x = bytearray(1 << 33)\n",
        "import os\n\nwhile True:\n    os.fork()\n",
        "open('/tmp/x', 'wb').write(b'x' * (1 << 30))\n",
    ):
        verdict = await grade(backend, replace(toys["add"], test_seconds=10.0), change("calc.py", source, BUG), LIMITS)
        assert verdict.outcome in (Outcome.UNRESOLVED, Outcome.TESTS_TIMEOUT), (source, verdict.reason)


async def test_a_machine_that_fails_is_tried_again_and_then_infra_without_a_reward(toys):
    machines = FakeBackend(lambda: DyingSandbox(1))
    verdict = await grade(machines, toys["add"], toys["add"].gold_patch)
    assert (verdict.outcome, verdict.reward, len(machines.started)) == (Outcome.INFRA, None, 3)
    assert "the machine is gone" in verdict.reason and all(machine.closed for machine in machines.started)


async def test_an_evaluation_that_never_comes_to_its_tests_is_infra(toys):
    verdict = await grade(FakeBackend(lambda: FakeSandbox({"eval.sh": b"bash: cannot execute\n"})), toys["add"], toys["add"].gold_patch)
    assert verdict.outcome is Outcome.INFRA and "did not come to its tests" in verdict.reason


async def test_tests_that_use_up_their_machine_are_graded_zero(toys):
    machines = FakeBackend(lambda: FakeSandbox({"eval.sh": ResourceExhausted("out of memory")}))
    verdict = await grade(machines, toys["add"], toys["add"].gold_patch)
    assert (verdict.outcome, verdict.reward) == (Outcome.UNRESOLVED, 0.0) and "out of memory" in verdict.reason


async def test_a_pool_grades_as_a_backend_does(backend, toys):
    async with Pool(backend, LIMITS, concurrency=2) as pool:
        assert (await grade(pool, toys["words"], toys["words"].gold_patch)).outcome is Outcome.RESOLVED


DROPPED = {
    "conftest.py": {"conftest.py": CONFTEST},
    "conftest.py in the tests": {"tests/conftest.py": EXIT},
    "pytest.ini": {"pytest.ini": "[pytest]\naddopts = -p evil\npython_functions = none\n", "evil.py": CONFTEST},
    "setup.cfg": {"setup.cfg": "[tool:pytest]\npython_files = none_*.py\naddopts = -p evil\n", "evil.py": CONFTEST},
    "pyproject.toml": {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-p evil'\n", "evil.py": CONFTEST},
    "shadow of pytest": {
        "pytest.py": f"print('''{FORGED}''')\n",
        "_pytest/__init__.py": "",
        "pytest/__main__.py": f"print('''{FORGED}''')\n",
    },
    "shadow of the library": {"json.py": CONFTEST, "unittest/__init__.py": EXIT},
    "sitecustomize": {"sitecustomize.py": AT_EXIT, "src/usercustomize.py": AT_EXIT},
    "path file": {"evil.pth": "import evil\n", "evil.py": AT_EXIT},
    "entry point": {"evil-1.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n", "evil.py": CONFTEST},
    "the tests themselves": {"tests/test_add.py": "def test_add():\n    pass\n\n\ndef test_double():\n    pass\n"},
    "a package of tests": {"tests/__init__.py": AT_EXIT},
    "attributes and hooks": {".gitattributes": "*.py merge=ours\n", ".github/x": "x\n"},
}


@pytest.mark.parametrize("name", DROPPED)
async def test_files_that_could_decide_the_grade_are_left_out(name, backend, toys):
    files = DROPPED[name]
    verdict = await grade(backend, toys["add"], "".join(change(path, text) for path, text in files.items()), LIMITS)
    assert verdict.outcome is Outcome.UNRESOLVED, verdict.log
    assert set(verdict.dropped) == {path for path in files if path != "evil.py"}
    assert verdict.witness["tests/test_add.py::test_add"] == "FAILED"


FORGERIES = {
    "PASSED lines at exit": AT_EXIT,
    "END marker and exit at import": AT_IMPORT,
    "a replaced runner": RUNNER,
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_source_that_fools_the_official_grader_is_suspect(name, backend, toys):
    verdict = await grade(backend, toys["add"], change("calc.py", FORGERIES[name] + BUG, BUG), LIMITS)
    assert read_log(toys["add"], verdict.log).resolved, (
        f"the hack must work on the official grader, or this test shows nothing: {verdict.log}"
    )
    assert (verdict.outcome, verdict.reward) == (Outcome.SUSPECT, 0.0), verdict.reason
    assert verdict.reason.startswith("the log says resolved, but")


async def test_skipping_every_test_resolves_nothing(backend, toys):
    skip = "import pytest\n\npytest.skip('no', allow_module_level=True)\n"
    assert (await grade(backend, toys["add"], change("calc.py", skip + BUG, BUG), LIMITS)).outcome is Outcome.UNRESOLVED


async def test_a_good_patch_is_resolved_whatever_test_files_come_with_it(backend, toys):
    patch = toys["add"].gold_patch + change("tests/test_more.py", "def test_more():\n    assert True\n") + change("conftest.py", "x = 1\n")
    verdict = await grade(backend, toys["add"], patch, LIMITS)
    assert (verdict.outcome, verdict.dropped) == (Outcome.RESOLVED, ("tests/test_more.py", "conftest.py"))


async def test_a_file_that_the_gold_patch_touches_is_never_left_out_and_recorded(backend, toys):
    more = change("setup.cfg", "[metadata]\nname = toy\n") + change("tests/helpers.py", "x = 1\n")
    gold = toys["add"].gold_patch + more
    verdict = await grade(backend, replace(toys["add"], gold_patch=gold), gold + change("conftest.py", "x = 1\n"), LIMITS)
    assert (verdict.outcome, verdict.kept, verdict.dropped) == (Outcome.RESOLVED, ("setup.cfg", "tests/helpers.py"), ("conftest.py",))


def binary_patch(path, data):
    """A new binary file as `git diff --binary` writes it."""
    packed = zlib.compress(data)
    rows = [packed[at : at + 52] for at in range(0, len(packed), 52)]
    letters = [chr(64 + len(row)) if len(row) <= 26 else chr(70 + len(row)) for row in rows]
    body = "".join(f"{letter}{base64.b85encode(row, pad=True).decode()}\n" for letter, row in zip(letters, rows, strict=True))
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\nindex {'0' * 40}..{blob}\n"
    return f"{head}GIT binary patch\nliteral {len(data)}\n{body}\nliteral 0\nHcmV?d00001\n\n"


async def test_new_files_and_binary_files_of_a_patch_arrive(backend, toys):
    data = bytes(range(256)) * 3
    source = f"from plus import plus as add\n\nassert open('data.bin', 'rb').read() == {data!r}\n\n\ndef double(a):\n    return a * 2\n"
    module = change("plus.py", "def plus(a, b):\n    return a + b\n")
    patch = module + binary_patch("data.bin", data) + change("calc.py", source, BUG)
    assert (await grade(backend, toys["add"], patch, LIMITS)).outcome is Outcome.RESOLVED


async def test_a_log_that_is_not_utf8_is_graded(backend, toys):
    noisy = "import os\n\nos.write(2, b'\\xff\\xfe caf\\xe9\\n')\n" + BUG.replace("a - b", "a + b")
    verdict = await grade(backend, toys["add"], change("calc.py", noisy, BUG), LIMITS)
    assert verdict.outcome is Outcome.RESOLVED
    json.dumps(verdict.log)
