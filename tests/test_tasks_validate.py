"""Is a task sound? What a flaky, an order-dependent, a wrong and a broken task look like, on real machines; and that it goes on."""

import json
from dataclasses import replace

import pytest

from pipeline.cli import main
from sandbox import FakeBackend, FakeSandbox, SandboxError
from tasks import Outcome, Suite, Verdict, load_suite, toy_suite, validate_suite
from tasks.lineage import entries
from tasks.patches import diff_text
from tasks.soundness import fails_by_missing_names, wants_network
from tasks.validate import Validation, fingerprint

RESOLVED, UNRESOLVED = Outcome.RESOLVED, Outcome.UNRESOLVED


@pytest.fixture
def toys(tmp_path) -> Suite:
    return toy_suite(tmp_path / "toy")


def with_tests(task, text, **lists):
    """The toy task with another test file."""
    (path,) = {test.partition("::")[0] for test in task.fail_to_pass}
    patch = diff_text(path, None, text)
    lists = {key: tuple(f"{path}::{name}" for name in names) for key, names in lists.items()}
    return replace(task, test_patch=patch, eval_script=task.eval_script.replace(task.test_patch, patch), **lists)


async def test_sound_tasks_are_told_from_those_whose_tests_depend_on_their_order_or_pass_anyway(backend, toys):
    add = toys.tasks[0]
    body = "from calc import add\nSEEN = []\n\n\ndef test_first():\n    SEEN.append(1)\n    assert add(2, 3) == 5\n\n\n"
    ordered = with_tests(add, body + "def test_second():\n    assert SEEN\n", fail_to_pass=("test_first",), pass_to_pass=("test_second",))
    easy = with_tests(add, "def test_it():\n    pass\n", fail_to_pass=("test_it",), pass_to_pass=())
    wrong = replace(add, gold_patch=diff_text("notes.txt", None, "x\n"))
    tasks = [replace(task, instance_id=name) for name, task in {"sound": add, "ordered": ordered, "easy": easy, "wrong": wrong}.items()]
    found = await validate_suite(Suite(toys.path, tuple(tasks)), backend, repeats=2)
    assert [one.why_not for one in found] == [
        "",
        "its tests depend on their order: unresolved in the opposite one",
        "the untouched tree: resolved",
        "the gold patch does not resolve: unresolved",
    ]
    # A reversed patch could be taken back from the untouched tree, so it counts as applied there, and officially: it changes nothing.
    assert [one.reversed for one in found][:3] == [Outcome.UNRESOLVED, Outcome.UNRESOLVED, Outcome.RESOLVED]
    assert {one.empty for one in found} == {Outcome.NO_PATCH}
    assert found[0].gold == (RESOLVED, RESOLVED) and found[0].seconds > 0
    assert (found[0].memory_mb is not None) == (backend.name == "docker")
    lines = [entry for entry in entries(toys.path) if entry["step"] == "validate"]
    assert [(entry["instance_id"], entry["sound"]) for entry in sorted(lines, key=lambda e: e["instance_id"])] == [
        ("easy", False),
        ("ordered", False),
        ("sound", True),
        ("wrong", False),
    ]
    assert all(entry["image"] and entry["when"] and entry["fingerprint"] for entry in lines)
    again = await validate_suite(Suite(toys.path, tuple(tasks)), FakeBackend(never), repeats=2)
    assert [one.instance_id for one in again if one.failed] == ["sound", "ordered", "easy", "wrong"], "another image is another validation"


def never() -> FakeSandbox:
    raise SandboxError("no machine may be started")


async def test_what_is_known_is_not_run_again_and_a_failed_machine_is_not_known(toys):
    log = b"+ : '>>>>> Start Test Output'\n+ : '>>>>> End Test Output'\n"
    suite = Suite(toys.path, toys.tasks[:1])
    (dead,) = await validate_suite(suite, FakeBackend(never))
    assert dead.failed and dead.why_not == "the machine failed" and not dead.sound
    counting = FakeBackend(lambda: FakeSandbox({"eval.sh": log}))
    (first,) = await validate_suite(suite, counting)
    assert first.gold == (UNRESOLVED,) and counting.started
    assert await validate_suite(suite, FakeBackend(never)) == (first,)
    (other,) = await validate_suite(suite, FakeBackend(never), repeats=2)
    assert other.failed, "another number of repeats is another validation"


def test_a_validation_holds_for_what_grading_reads(toys):
    task = toys.tasks[0]
    marks = {
        fingerprint(task, "i", 1),
        fingerprint(task, "j", 1),
        fingerprint(task, "i", 2),
        fingerprint(replace(task, gold_patch=""), "i", 1),
        fingerprint(replace(task, test_seconds=1.0), "i", 1),
        fingerprint(replace(task, image=toys.tasks[1].image), "i", 1),
    }
    assert len(marks) == 6 and fingerprint(replace(task, split="x"), "i", 1) in marks


def test_a_flaky_gold_patch_is_called_flaky():
    flaky = Validation("x", (RESOLVED, UNRESOLVED, RESOLVED), (UNRESOLVED,), 1.0)
    assert flaky.why_not == "the gold patch is flaky: resolved, unresolved" and not flaky.sound
    assert "want a network" in replace(flaky, gold=(UNRESOLVED,), network=True).why_not
    assert replace(flaky, gold=(RESOLVED,), reversed=RESOLVED).why_not == "the gold patch backwards resolves it"
    assert replace(flaky, gold=(RESOLVED,), empty=RESOLVED).why_not == "an empty patch: resolved"
    assert replace(flaky, gold=(RESOLVED,)).sound


def test_a_log_tells_of_a_network_that_is_not_there():
    assert wants_network(["x", "E   socket.gaierror: [Errno -3] Temporary failure in name resolution"])
    assert not wants_network(["E   AssertionError: 1 == 2"])


def test_tests_that_fail_only_by_missing_names_are_told(toys):
    task = replace(toys.tasks[0], fail_to_pass=("t.py::a", "t.py::b"))

    def told(log: str) -> bool:
        return fails_by_missing_names(task, Verdict("x", UNRESOLVED, log=log))

    assert told("FAILED t.py::a - AttributeError: module has no b\nFAILED t.py::b - calc.NameError: b\n")
    assert told("E   ImportError: cannot import name 'b'\nERROR t.py\n")
    assert not told("FAILED t.py::a - AttributeError: x\nFAILED t.py::b - assert 1 == 2\n")
    assert not told("FAILED t.py::a - AttributeError: x\n") and not told("")


def test_the_command_keeps_the_sound_tasks_and_goes_on_where_it_was(toys, tmp_path, capsys):
    bad = toys.path / "tasks" / toys.tasks[0].instance_id
    (bad / "gold.patch").write_text(diff_text("notes.txt", None, "x\n"))
    words = ["tasks", "validate", str(toys.path), "--sandbox", "bubblewrap", "--keep", str(tmp_path / "sound")]
    assert main(words) == 0
    assert (
        f"{bad.name}: not sound: the gold patch does not resolve" in (text := capsys.readouterr().out) and "2 of 3 tasks are sound" in text
    )
    kept = load_suite(tmp_path / "sound")
    assert {task.instance_id for task in kept.tasks} == {task.instance_id for task in toys.tasks} - {bad.name} and not kept.broken
    before = len(list(entries(toys.path)))
    assert main(words) == 0 and len(list(entries(toys.path))) == before, "nothing was run again"
    (tmp_path / "sound" / "sweb.yaml").write_text("datasets: [other]\n")
    capsys.readouterr()
    assert main(words) == 2 and "another suite" in capsys.readouterr().err
    assert json.loads((toys.path / "lineage.jsonl").read_text().splitlines()[-1])["step"] == "validate"
