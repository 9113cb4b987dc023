"""`tasks mutate`: a small package of a folder, a git repository or an archive becomes a suite; twice the same; what is refused."""

import asyncio
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tasks import Request, build_suite, load_suite, mutate_suite
from tasks.lineage import entries
from tasks.prospect import fetch, find_modules, find_tests, look
from tasks.recipe import load_recipe
from tasks.sdist import download_sdist
from tasks.snapshot import snapshot

SOURCE = '''"""Prices."""
import importlib.metadata

VERSION = importlib.metadata.version("till")


def total(prices, discount=0):
    """The sum of prices, less a discount."""
    summed = 0
    for price in prices:
        if price < 0:
            raise ValueError("a price below nothing")
        summed = summed + price
    return summed - discount


def cheapest(prices, limit):
    """Prices up to a limit, cheapest first."""
    found = [price for price in prices if price <= limit]
    return sorted(found)
'''
TEST = """import pytest

from till import VERSION, cheapest, total


def test_a_sum():
    assert total([1, 2, 3]) == 6


def test_a_discount():
    assert total([4, 4], discount=3) == 5


def test_nothing_is_sold_below_nothing():
    with pytest.raises(ValueError):
        total([-1])


def test_free_things_are_sold():
    assert total([0]) == 0


def test_the_cheapest_come_first():
    basket = [5, 3, 9]
    assert cheapest(basket, 5) == [3, 5]


def test_a_plugin_is_there(mocker):
    assert mocker.Mock(return_value=3)() == 3


def test_it_knows_its_version():
    assert VERSION == "1.5"
"""
SETTINGS = """[project]
name = "till"
version = "1.5"
dependencies = []

[project.optional-dependencies]
test = ["pytest", "pytest-mock", "ruff"]
"""


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A package with metadata that only its build writes, and a setup.py and a hook that leave a mark where they are run."""
    folder = tmp_path / "till"
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    texts = {"src/till/__init__.py": SOURCE, "tests/test_till.py": TEST, "pyproject.toml": SETTINGS, "setup.py": mark, "docs/conf.py": mark}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    hook = folder / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    (folder / "untracked.py").write_text("def not_tracked():\n    return 1\n")
    return folder


def mutate(request: Request, out: Path, backend, progress=None):
    return asyncio.run(mutate_suite(request, out, backend, progress))


def hashes(suite: Path) -> dict[str, str]:
    files = (path for path in suite.rglob("*") if path.is_file())
    return {path.relative_to(suite).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Interrupted(Exception):
    pass


def test_the_same_command_gives_the_same_bytes_also_when_interrupted_and_from_its_recipe(repository, backend, tmp_path):
    def interrupt(done, total, line):
        if done == 1:
            raise Interrupted

    request = Request(repo=repository, tasks=3, split="test")
    first = mutate(request, tmp_path / "a", backend)
    assert len(first.tasks) == 3 and first.broken == {} and {task.split for task in first.tasks} == {"test"}
    assert {task.repo for task in first.tasks} == {"local/till"} and not (tmp_path / "ran").exists()
    with pytest.raises(Interrupted):
        mutate(request, tmp_path / "b", backend, interrupt)
    assert len(load_suite(tmp_path / "b").tasks) == 1
    mutate(request, tmp_path / "b", backend)
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")
    asyncio.run(build_suite(tmp_path / "a" / "recipe.json", tmp_path / "c", backend))
    built, wanted = hashes(tmp_path / "c"), hashes(tmp_path / "a")
    assert built.pop("lineage.jsonl") != wanted.pop("lineage.jsonl"), "a recipe's rerun looks for nothing"
    assert built == wanted
    looked = next(entries(tmp_path / "a"))
    assert looked["modules"] == ["src/till"] and looked["tests"] == ["tests"] and looked["generated"] == ["src/till.egg-info/PKG-INFO"]
    for test in ("test_it_knows_its_version", "test_a_plugin_is_there"):
        assert all(f"tests/test_till.py::{test}" in task.pass_to_pass for task in first.tasks), "metadata and plugins are there"
    for task in first.tasks:
        assert task.problem_statement.startswith("till ") and ".py" not in task.problem_statement, task.problem_statement
        assert "total(" in task.problem_statement or "cheapest(" in task.problem_statement
    words = ["--repo", str(repository), "--out", str(tmp_path / "a"), "-n", "3", "--split", "test"]
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", "tasks", "mutate", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "3 tasks" in done.stdout and hashes(tmp_path / "a") == hashes(tmp_path / "b"), done.stderr
    with tarfile.open(first.tasks[0].image.tree) as tar:
        assert not {"untracked.py", "docs/conf.py"} & set(tar.getnames())


@pytest.mark.bubblewrap
def test_a_suite_of_another_request_or_of_changed_source_is_refused(repository, tmp_path):
    from sandbox import open_backend

    backend, out = open_backend("bubblewrap"), tmp_path / "suite"
    mutate(Request(repo=repository, tasks=1), out, backend)
    before = hashes(out)
    for other, what in (
        (Request(repo=repository, tasks=2), "-n"),
        (Request(package="till", tasks=1), "source"),
        (Request(repo=repository, tasks=1, seed=4), "--seed"),
    ):
        with pytest.raises(ValueError, match=f"another request .*{what}"):
            mutate(other, out, backend)
    (repository / "src/till/__init__.py").write_text(SOURCE + "\n")
    assert len(mutate(Request(repo=repository, tasks=1), out, backend).tasks) == 1, "what is not committed is not looked at"
    git(repository, "commit", "--quiet", "--all", "--message", "more")
    with pytest.raises(ValueError, match="content"):
        mutate(Request(repo=repository, tasks=1), out, backend)
    assert hashes(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(ValueError, match="not empty"):
        mutate(Request(repo=repository), tmp_path / "other", backend)


@pytest.mark.bubblewrap
@pytest.mark.parametrize(
    "texts, complaint",
    [
        ({"README": "x"}, "no Python package"),
        ({"a.py": "x = 1\n"}, "no tests that pytest runs"),
        ({"a.py": "x = 1\n", "test_a.py": "import nothing_of_that_name\n"}, "do not run in the sandbox"),
        (
            {"a.py": "x = 1\n", "test_a.py": "def test():\n    pass\n", "setup.cfg": "[metadata]\nname = pluggy\n"},
            "part of the test runner",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused_in_one_line_and_leaves_nothing(tmp_path, texts, complaint):
    folder = tmp_path / "it"
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pipeline.cli", "tasks", "mutate", "--repo", folder, "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--sandbox", "bubblewrap"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and complaint in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_wrong_words_are_refused(tmp_path):
    for words in (["--repo", "here", "--package", "x==1"], [], ["--package", "x==1 --index-url=y"], ["--repo", str(tmp_path / "none")]):
        command = [sys.executable, "-m", "pipeline.cli", "tasks", "mutate", *words, "--out", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_of_a_plain_folder_no_caches_links_or_hidden_files_are_taken(tmp_path):
    folder = tmp_path / "x"
    for name in ("a.py", "tests/test_a.py", ".venv/lib.py", "__pycache__/a.pyc", "build/a.py", ".hidden"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")
    (folder / "link.py").symlink_to("/etc/passwd")
    hashed = set()
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        archive, commit = snapshot(folder, tmp_path / str(number))
        hashed.add(hashlib.sha256(archive.read_bytes()).hexdigest())
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["source/a.py", "source/tests/test_a.py"] and commit == ""
    assert len(hashed) == 1


@pytest.mark.bubblewrap
def test_a_version_from_git_tags_is_no_commit_and_a_draft_is_no_suite(repository, tmp_path):
    from sandbox import open_backend

    settings = (repository / "pyproject.toml").read_text().replace('version = "1.5"', 'dynamic = ["version"]')
    (repository / "pyproject.toml").write_text(settings)
    git(repository, "commit", "--quiet", "--all", "--message", "dynamic")
    (tmp_path / "suite" / "sources").mkdir(parents=True)
    mutate(Request(repo=repository, tasks=1), tmp_path / "suite", open_backend("bubblewrap"))
    (package,) = load_recipe(tmp_path / "suite" / "recipe.json").packages
    assert package.generated["src/till.egg-info/PKG-INFO"].endswith("Version: 0.0.0\n") and len(package.version) == 12


def test_layouts_are_found():
    names = ["setup.py", "src/pkg/__init__.py", "src/pkg/a.py", "src/one.py", "tests/unit/test_a.py", "docs/conf.py"]
    assert find_modules(names) == ("src/one.py", "src/pkg") and find_tests(names) == ("tests",)
    assert find_modules(["space/deep/a.py"]) == ("space",), "a namespace package has no __init__.py"
    names = ["pkg/__init__.py", "dev/clean.py", "pkg/tests/test_a.py", "pkg/test_b.py", "mod.py", "examples/x.py", "tests/data.py"]
    assert find_modules(names) == ("mod.py", "pkg") and find_tests(names) == ("pkg/test_b.py", "pkg/tests")


def sdist(folder: Path, texts: dict[str, str]) -> Path:
    path = folder / "till-2.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"till-2/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_the_build_backend_of_a_package_is_never_run(tmp_path):
    """Its own backend, in its own tree: pip would import it from there."""
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    settings = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    texts = {"PKG-INFO": "Metadata-Version: 2.1\nName: till\nVersion: 2\n", "pyproject.toml": settings, "own.py": mark, "setup.py": mark}
    archive = sdist(tmp_path, texts)
    found = download_sdist(f"till @ {archive.as_uri()}", tmp_path / "pip")
    assert found.read_bytes() == archive.read_bytes() and not (tmp_path / "ran").exists()


def test_a_release_of_the_index_is_found_with_its_version_and_hash(tmp_path):
    request = Request(package="SemVer==3.0.2", tasks=2)
    found = look(request, fetch(request, tmp_path), tmp_path)
    (package,) = found.recipe.packages
    assert (package.name, package.version, package.modules, package.tests) == ("semver", "3.0.2", ("src/semver",), ("tests",))
    assert package.sha256 == hashlib.sha256(found.archive.read_bytes()).hexdigest() and len(found.recipe.requirements) == 5
    chosen = look(Request(package="semver==3.0.2", tests=("tests/test_bump.py",)), fetch(request, tmp_path / "more"), tmp_path)
    assert chosen.recipe.packages[0].tests == ("tests/test_bump.py",)
    with pytest.raises(ValueError, match="its source holds no nowhere"):
        look(Request(package="semver==3.0.2", modules=("nowhere",)), fetch(request, tmp_path / "most"), tmp_path)
    with pytest.raises(ValueError, match="No matching distribution"):
        fetch(Request(package="semver==0.0.999"), tmp_path / "other")
