"""Mining: a small repository with a history of five commits, mined in real sandboxes; what is refused, and what is resumed."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from sandbox import Secret, seal_all
from tasks import Claim, load_issues, load_suite, mine_suite
from tasks.base import Outcome
from tasks.grade import grade, grade_untouched
from tasks.lineage import entries

TWICE = "def twice(n):\n    return n + 2\n\n\ndef half(n):\n    return n / 2\n"
FIXED = TWICE.replace("n + 2", "n * 2  # two of them")
HALVES = FIXED.replace("return n / 2", "return n // 2 if n % 2 == 0 else n / 2")
NAMED = HALVES.replace("def half(n)", "def half(n, /)")
OLD_TEST = (
    "from calc import half, twice\n\n\ndef test_twice():\n    assert twice(2) == 4\n\n\ndef test_half():\n    assert half(3) == 1.5\n"
)
TOLD = "Twice is not twice\n\nIt adds.\n\n    return n * 2  # two of them\n\nSigned-off-by: A <a@b.c>\n"


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def commit(folder: Path, message: str, **files: str) -> str:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A package, a fix with a changed test, a fix with a new test, a refactoring with its test, a change of the documentation."""
    folder = tmp_path_factory.mktemp("history")
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "tests").mkdir()
    settings = '[project]\nname = "calc"\nversion = "1"\ndependencies = []\n[project.optional-dependencies]\ntest = ["pytest", "ruff"]\n'
    commit(folder, "start", calc_dot_py=TWICE, tests__test_calc_dot_py=OLD_TEST, pyproject_dot_toml=settings)
    changed = OLD_TEST.replace("twice(2) == 4", "twice(3) == 6")
    ids = {"changed": commit(folder, TOLD, calc_dot_py=FIXED, tests__test_calc_dot_py=changed)}
    halves = "from calc import half\n\n\ndef test_whole():\n    assert str(half(4)) == '2'\n"
    ids["new"] = commit(folder, "Halves of even numbers are whole (#7)", calc_dot_py=HALVES, tests__test_halves_dot_py=halves)
    ids["same"] = commit(folder, "Positional", calc_dot_py=NAMED, tests__test_halves_dot_py=halves + "\n\ndef test_more():\n    half(1)\n")
    ids["docs"] = commit(folder, "Explain", README_dot_md="twice and half\n")
    return folder, ids


def mine(repository: str | Path, out: Path, backend, **words):
    told = []
    claim = Claim(str(repository), name="own/calc", **words)
    suite = asyncio.run(mine_suite(claim, out, backend, lambda done, total, line: told.append((done, total, line))))
    return suite, told


def test_fixes_become_tasks_and_the_rest_is_told_why_not(history, backend, tmp_path):
    folder, ids = history
    suite, told = mine(folder, tmp_path / "suite", backend)
    assert not suite.broken
    found = {entry["commit"]: entry for entry in entries(tmp_path / "suite")}
    assert set(found) == {ids["changed"], ids["new"], ids["same"]}, "documentation alone is no candidate"
    assert {name for name, key in ids.items() if found.get(key, {}).get("kept")} == {"changed", "new"}
    assert found[ids["same"]]["why"] == "no test notices the fix"
    assert found[ids["changed"]]["new_tests"] == [] and found[ids["changed"]]["existing"] == 1
    assert found[ids["new"]]["new_tests"] == ["tests/test_halves.py::test_whole"]
    assert found[ids["new"]]["dropped"][1].endswith("a tool, not needed to run tests")
    assert sorted(told)[-1][:2] == (3, 3)
    changed = next(task for task in suite.tasks if task.instance_id.endswith(ids["changed"][:12]))
    assert changed.fail_to_pass == ("tests/test_calc.py::test_twice",)
    assert changed.pass_to_pass == ("tests/test_calc.py::test_half",)
    assert "Twice is not twice" in changed.problem_statement and "It adds." in changed.problem_statement
    assert "two of them" not in changed.problem_statement and "Signed-off" not in changed.problem_statement
    assert "assert 5 == 6" in changed.problem_statement


def test_a_mined_task_is_graded_and_can_be_sealed(history, backend, tmp_path):
    suite, _ = mine(history[0], tmp_path / "suite", backend)

    async def check() -> None:
        for task in suite.tasks:
            assert (await grade(backend, task, task.gold_patch)).outcome is Outcome.RESOLVED
            assert (await grade_untouched(backend, task)).outcome is Outcome.UNRESOLVED
        secrets = [(task.image, Secret(task.base_commit, task.gold_patch, task.test_patch)) for task in suite.tasks]
        assert not [found for found in await seal_all(backend, secrets) if isinstance(found, Exception)]

    assert len(suite.tasks) == 2
    asyncio.run(check())


def test_a_test_file_that_the_agent_edited_comes_back_before_it_is_graded(history, backend, tmp_path):
    """The changed test exists in the tree; the script restores it from the base commit, so that the test patch applies."""
    suite, _ = mine(history[0], tmp_path / "suite", backend)
    task = next(task for task in suite.tasks if "test_twice" in task.fail_to_pass[0])
    assert f"git checkout {task.base_commit} tests/test_calc.py" in task.eval_script
    other = next(task for task in suite.tasks if "test_whole" in task.fail_to_pass[0])
    assert "rm -rf tests/test_halves.py" in other.eval_script


@pytest.mark.bubblewrap
def test_a_bare_repository_will_do_and_a_supplied_issue_is_told(history, tmp_path, environment):
    from sandbox import open_backend

    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(history[0]), str(bare))
    issues = tmp_path / "issues.jsonl"
    issues.write_text(json.dumps({"issue": 7, "text": "half(4) prints 2.0"}) + "\n")
    suite, _ = mine(bare, tmp_path / "suite", open_backend("bubblewrap"), issues=load_issues(issues))
    new = next(task for task in suite.tasks if task.instance_id.endswith(history[1]["new"][:12]))
    assert new.problem_statement.startswith("half(4) prints 2.0")


@pytest.mark.bubblewrap
def test_an_interrupted_run_goes_on_where_it_was(history, tmp_path, environment):
    from sandbox import open_backend

    backend = open_backend("bubblewrap")
    mine(history[0], tmp_path / "suite", backend, limit=1)
    first = list(entries(tmp_path / "suite"))
    assert [entry["commit"] for entry in first] == [history[1]["same"]]
    mine(history[0], tmp_path / "suite", backend)
    again = list(entries(tmp_path / "suite"))
    assert again[:1] == first and len(again) == 3
    mine(history[0], tmp_path / "suite", backend)
    assert list(entries(tmp_path / "suite")) == again
    assert len(load_suite(tmp_path / "suite").tasks) == 2


@pytest.mark.bubblewrap
def test_a_shallow_repository_is_refused(history, tmp_path):
    from sandbox import open_backend

    git(tmp_path, "clone", "--quiet", "--depth", "2", f"file://{history[0]}", "shallow")
    with pytest.raises(ValueError, match="is a shallow clone: mining needs the whole history"):
        mine(tmp_path / "shallow", tmp_path / "suite", open_backend("bubblewrap"))


@pytest.mark.bubblewrap
def test_what_is_no_repository_is_one_clear_line(tmp_path):
    from sandbox import open_backend

    with pytest.raises(ValueError, match="cannot be cloned") as found:
        mine(tmp_path / "nothing", tmp_path / "suite", open_backend("bubblewrap"))
    assert "\n" not in str(found.value)
