"""Environments on another Python, and trees of a commit of somebody's repository: real interpreters, real git, real machines."""

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import Image, Limits, SandboxError, checkout_tree, ensure_environment
from sandbox.pythons import find_python, wanted_python

LIMITS = Limits(command_seconds=60.0)
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


def other_python() -> str:
    """A Python of this machine that is not ours; ours where there is no other."""
    for version in ("3.9", "3.10", "3.12", "3.13"):
        try:
            if version != OURS and find_python(version):
                return version
        except SandboxError:
            continue
    return OURS


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str, str]:
    """A repository whose second commit answers what the first one asks; its hook must not run."""
    folder = tmp_path / "project"
    folder.mkdir()

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    ids = []
    for text in ("broken", "the answer is 42"):
        (folder / "code.py").write_text(f"# {text}\n")
        git("add", ".")
        git("commit", "--quiet", "-m", text)
        ids.append(git("rev-parse", "HEAD"))
    hook = folder / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    return folder, ids[0], ids[1]


def test_a_python_is_asked_for_once_and_by_major_and_minor():
    assert (wanted_python(["pytest==8.4.2"]), wanted_python(["python==3.9", "x==1"])) == ("", "3.9")
    for wrong in (["python==3.9.1"], ["python==3.9", "python==3.10"]):
        with pytest.raises(ValueError, match=r"write python==MAJOR\.MINOR, once"):
            wanted_python(wrong)


def test_a_python_that_is_not_there_says_how_to_get_it():
    with pytest.raises(SandboxError, match=r"no Python 3\.99 .*uv python install 3\.99"):
        find_python("3.99")


async def test_a_machine_has_the_python_its_environment_names_and_its_packages(backend, tmp_path: Path, repository):
    folder, first, _ = repository
    checkout_tree(folder, first, tmp_path / "tree.tar")
    version = other_python()
    name = ensure_environment((f"python=={version}", "mpmath==1.3.0"))
    machine = await backend.start(Image(name, tmp_path / "tree.tar"), LIMITS)
    try:
        said = await machine.run("python -c 'import sys, mpmath; print(sys.version_info[:2], mpmath.__version__)'")
        assert said.text.splitlines()[-1] == f"({version.replace('.', ', ')}) 1.3.0"
    finally:
        await machine.close()


async def test_a_tree_of_a_commit_keeps_its_id_and_none_of_what_came_later(backend, environment, tmp_path: Path, repository):
    folder, first, second = repository
    checkout_tree(folder, first, tmp_path / "tree.tar", {"made/version.py": "v = 1\n"})
    machine = await backend.start(Image(environment, tmp_path / "tree.tar"), LIMITS)
    try:
        assert (await machine.run("git rev-parse HEAD")).text.strip() == first
        assert (await machine.run("cat code.py made/version.py")).text == "# broken\nv = 1\n"
        assert (await machine.run(f"git cat-file -e {second}")).exit_code != 0
        assert (await machine.run("git log --all --oneline | wc -l")).text.strip() == "1"
    finally:
        await machine.close()
    assert not (tmp_path / "ran").exists()


def test_a_commit_that_is_not_there_and_a_file_that_leads_out_are_refused(tmp_path: Path, repository):
    folder, first, _ = repository
    with pytest.raises(SandboxError):
        checkout_tree(folder, "0" * 40, tmp_path / "tree.tar")
    with pytest.raises(SandboxError, match="leads out of the tree"):
        checkout_tree(folder, first, tmp_path / "tree.tar", {"../x": ""})
    assert not (tmp_path / "tree.tar").exists() and not (tmp_path / "x").exists()
