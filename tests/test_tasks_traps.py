"""What has made other graders say something wrong, each as a test: ids cut short, statuses, markers, exit codes, sizes, patches."""

from dataclasses import replace

import pytest

from sandbox import FakeBackend, FakeSandbox, Limits
from tasks import Evidence, Outcome, grade, toy_suite
from tasks.base import Task
from tasks.evaluation import Evaluation
from tasks.grade import judge
from tasks.patches import diff_text, patch_paths
from tasks.swebench import END, START
from tasks.witness import Witness

LIMITS = Limits(memory_mb=512, pids=64, disk_mb=128)
BUG = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a * 2\n"
GOOD = BUG.replace("a - b", "a + b")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Task:
    return next(task for task in toy_suite(tmp_path_factory.mktemp("toy")).tasks if task.instance_id.endswith("-add"))


def graded(toy: Task, log: str, fail_to_pass: tuple[str, ...] = ("t.py::f",), pass_to_pass: tuple[str, ...] = ("t.py::p",)) -> Outcome:
    """The verdict on what stands between the markers, where the log is all there is."""
    task = replace(toy, requirements=(), fail_to_pass=fail_to_pass, pass_to_pass=pass_to_pass)
    verdict = judge(task, Evaluation(f"+ : '{START}'\n{log}\n+ : '{END}'\n", Witness()))
    assert verdict.evidence is Evidence.LOG_ONLY
    return verdict.outcome


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        (("PASSED", "PASSED"), Outcome.RESOLVED),
        (("XFAIL", "XFAIL"), Outcome.RESOLVED),
        (("PASSED", "SKIPPED"), Outcome.RESOLVED),
        (("SKIPPED", "PASSED"), Outcome.UNRESOLVED),
        (("ERROR", "PASSED"), Outcome.UNRESOLVED),
        (("PASSED", "FAILED"), Outcome.UNRESOLVED),
        (("XPASS", "PASSED"), Outcome.UNRESOLVED),
    ],
)
def test_xfail_counts_as_passed_and_skipped_only_where_nothing_was_to_be_fixed(statuses, outcome, toy):
    """SKIPPED lines of pytest carry no test id, so the parser of django's runner is asked for those."""
    if "SKIPPED" in statuses:
        words = {"PASSED": "ok", "SKIPPED": "skipped"}
        task = replace(toy, log_parser="parse_log_django")
        log = "".join(f"{name} ... {words[status]}\n" for name, status in zip(("f (t)", "p (t)"), statuses, strict=True))
        assert graded(task, log, ("f (t)",), ("p (t)",)) is outcome
    else:
        assert graded(toy, f"{statuses[0]} t.py::f\n{statuses[1]} t.py::p") is outcome


def test_a_test_that_is_missing_from_the_log_has_failed(toy):
    assert graded(toy, "PASSED t.py::f") is Outcome.UNRESOLVED
    assert graded(toy, "PASSED t.py::p") is Outcome.UNRESOLVED


def test_an_id_cut_short_stands_for_all_that_begin_like_it_where_they_agree(toy):
    cut = ("t.py::f[log(photon",)
    assert graded(toy, "PASSED t.py::f[log(photon /cm**2)]\nPASSED t.py::f[log(photon /s)]", cut, ()) is Outcome.RESOLVED
    assert graded(toy, "PASSED t.py::f[log(photon /cm**2)]\nFAILED t.py::f[log(photon /s)]", cut, ()) is Outcome.UNRESOLVED
    assert graded(toy, "PASSED t.py::f[1-2]", ("t.py::f[1]",), ()) is Outcome.UNRESOLVED, "a whole id stands for itself"


def test_a_log_that_claims_passes_while_the_exit_code_says_otherwise_is_not_believed(toy):
    log = f"PASSED t.py::f\nPASSED t.py::p\n+ : '{END}'\n>>>>> Test Exit Code: "
    assert graded(toy, f"{log}0") is Outcome.RESOLVED
    assert graded(toy, f"{log}1") is Outcome.UNRESOLVED


async def test_a_script_that_never_comes_to_its_tests_is_infra_but_not_where_the_patch_did_that(toy):
    """A setup.py may run before the tests, and kill the script: that is no excuse."""
    never = FakeBackend(lambda: FakeSandbox({"eval.sh": b"bash: cannot execute\n"}))
    assert (await grade(never, toy, toy.gold_patch)).outcome is Outcome.INFRA
    logs = iter([b"killed\n", f"+ : '{START}'\nFAILED tests/test_add.py::test_add\n+ : '{END}'\n".encode()])
    blamed = await grade(FakeBackend(lambda: FakeSandbox({"eval.sh": next(logs)})), toy, toy.gold_patch)
    assert blamed.outcome is Outcome.UNRESOLVED and "without the patch it does" in blamed.reason and blamed.reward == 0.0


def test_an_end_that_is_missing_is_the_doing_of_the_code_that_was_running(toy):
    verdict = judge(toy, Evaluation(f"+ : '{START}'\nPASSED tests/test_add.py::test_add\n", Witness()))
    assert verdict.outcome is Outcome.UNRESOLVED and "no test result could be read" in verdict.reason


async def test_a_test_file_that_the_agent_made_before_the_test_patch_does_not_get_in_its_way(backend, toy):
    """SWE-bench issue 538: 15 scripts of Verified do not remove what they add, and `git apply` then refuses the whole test patch."""
    (path,) = patch_paths(toy.test_patch)
    task = replace(toy, eval_script=toy.eval_script.replace(f"rm -rf {path}\ngit apply", "git apply"))
    assert task.eval_script != toy.eval_script
    ours = diff_text(path, None, "def test_add():\n    pass\n\n\ndef test_double():\n    pass\n")
    verdict = await grade(backend, task, ours + diff_text("calc.py", BUG, BUG.replace("a * 2", "2 * a")), LIMITS)
    assert (verdict.outcome, verdict.dropped) == (Outcome.UNRESOLVED, (path,)) and verdict.tests[f"{path}::test_add"] == "FAILED"
    assert (await grade(backend, task, ours + toy.gold_patch, LIMITS)).outcome is Outcome.RESOLVED


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
async def test_patches_with_other_line_ends_and_without_a_last_newline_are_graded(end, last, backend, toy):
    """The file is written anew: what the patch says of its line ends is what the tests import."""
    source = GOOD.replace("\n", end).removesuffix("" if last else end)
    removed = diff_text("calc.py", BUG, None)
    patch = removed + diff_text("calc/__init__.py", None, source)
    verdict = await grade(backend, toy, patch, LIMITS)
    assert verdict.outcome is Outcome.RESOLVED, verdict.reason


async def test_a_patch_that_renames_and_sets_modes_as_git_writes_it_is_graded(backend, toy):
    patch = (
        "diff --git a/calc.py b/calc/__init__.py\nold mode 100644\nnew mode 100755\nsimilarity index 90%\nrename from calc.py\n"
        "rename to calc/__init__.py\n--- a/calc.py\n+++ b/calc/__init__.py\n"
        "@@ -1,5 +1,5 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n \n \n def double(a):\n"
    )
    verdict = await grade(backend, toy, patch, LIMITS)
    assert verdict.outcome is Outcome.RESOLVED, verdict.reason


async def test_a_log_of_a_hundred_megabytes_is_graded_by_what_stands_at_its_ends(backend, toy):
    noise = "head -c 50000000 /dev/zero | tr '\\0' x\necho\n"
    loud = replace(toy, eval_script=toy.eval_script.replace(f": '{END}'\n", f": '{END}'\n{noise}{noise}"))
    assert loud.eval_script.count("head -c") == 2
    verdict = await grade(backend, loud, toy.gold_patch, LIMITS)
    assert verdict.outcome is Outcome.RESOLVED and len(verdict.log) < 9 << 20
    drowned = replace(toy, eval_script=toy.eval_script.replace(f": '{START}'\n", f": '{START}'\n{noise}{noise}"))
    verdict = await grade(backend, drowned, toy.gold_patch, LIMITS)
    assert verdict.outcome is Outcome.RESOLVED, "the tests are printed after the noise"
