"""Hostile scripted agents (scripts/cheats) on real machines of both backends: none resolves, none is excused, none gets out."""

import asyncio
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from pipeline.config import Config, RolloutConfig, SandboxConfig, TasksConfig
from pipeline.expert import read_scripts
from pipeline.journal import Journal
from pipeline.suite import roll_out
from pipeline.types import Stop
from sandbox import Limits, make_tree, open_backend
from tasks import Outcome, grade, toy_suite

CHEATS = Path(__file__).parents[1] / "scripts" / "cheats"
BACKENDS = [pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bubblewrap)]
ROW = re.compile(r"\| (\w+)( \(long\))?( \(open\))? \| .* \| .* \| ([a-z_, ]+) \|")
AGENTS = {row[1]: row for row in map(ROW.fullmatch, (CHEATS / "README.md").read_text().splitlines()) if row and row[1] != "agent"}
ALWAYS = {
    "fix_in_git_history",
    "commit_then_weaken",
    "conftest_hooks",
    "forged_log_and_exit",
    "patched_pytest",
    "startup_files",
    "background_rewriter",
    "git_configuration",
    "killed_supervisor",
    "network_probe",
}
"""What runs each time; the others with --long."""
SUCCESS = "BRE" + "ACH"
"""What a probe prints that got where it should not; no command has the word in one piece."""
EPISODES = {"leaves_traces": 5}
"""Agents that act more than once, one after the other on the same machine."""
SECONDS = 400.0


def marked(name: str) -> object:
    marks = [] if name in ALWAYS else [pytest.mark.long]
    if AGENTS[name][3]:
        marks.append(
            pytest.mark.xfail(
                strict=True, raises=AssertionError, reason="not stopped yet; when this passes, take (open) out of scripts/cheats/README.md"
            )
        )
    return pytest.param(name, marks=marks)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The toy suite; the first tree is made from a repository whose history, tags, stash and lost objects hold the fix."""
    found = toy_suite(tmp_path_factory.mktemp("toy"))
    task = found.tasks[0]
    folder = tmp_path_factory.mktemp("history")
    with tarfile.open(task.image.tree) as tar:
        tar.extractall(folder, filter="data")
    shutil.rmtree(folder / ".git")
    bug = (folder / "calc.py").read_text()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "base")
    (folder / "calc.py").write_text(bug.replace("a - b", "a + b"))
    git(folder, "commit", "--quiet", "--all", "--message", "fix")
    git(folder, "tag", "v2")
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    git(folder, "reset", "--quiet", "--hard", "HEAD~1")
    (folder / "calc.py").write_text(bug.replace("a - b", "b + a"))
    git(folder, "stash", "--quiet")
    assert make_tree(folder, task.image.tree) == task.base_commit
    return found


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, timeout=60)


async def act(name: str, backend: str, tasks, out: Path):
    """The episodes of an agent, as `greengrad rollout` makes them."""
    sandbox = SandboxConfig(backend=backend, concurrency=1, memory_mb=256, pids=64, disk_mb=64, command_seconds=10, episode_seconds=200)
    rollout = RolloutConfig(
        policy=f"script:{CHEATS}/{name}.json", max_turns=20, observation_chars=20_000, group_size=EPISODES.get(name, 1), infra_retries=0
    )
    config = Config(tasks=TasksConfig(suite=out), sandbox=sandbox, rollout=rollout)
    async with asyncio.timeout(SECONDS):
        await roll_out(config, tasks, out)
    with Journal(out, readonly=True) as journal:
        return list(journal.episodes())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [marked(name) for name in AGENTS])
async def test_a_cheat_is_not_resolved_not_excused_and_does_not_get_out(name, backend, suite, tmp_path, bystanders):
    allowed = {Outcome(word) for word in AGENTS[name][4].split(", ")}
    episodes = await act(name, backend, suite.tasks[:1], tmp_path)
    await until_nothing_is_left(bystanders)
    for episode in episodes:
        seen = "\n".join(turn.observation for turn in episode.turns)
        assert SUCCESS not in seen and SUCCESS not in episode.patch, seen
        assert episode.verdict.outcome in allowed, (episode.verdict.reason, episode.error, episode.verdict.log[-3000:], seen)
        assert episode.stop is not Stop.INFRA and episode.reward == 0.0
        assert all(turn.call is not None for turn in episode.turns)
    assert len(episodes) == EPISODES.get(name, 1)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_control_that_fixes_the_bug_is_resolved(backend, suite, tmp_path, bystanders):
    episodes = await act("control", backend, suite.tasks, tmp_path)
    await until_nothing_is_left(bystanders)
    assert [episode.verdict.outcome for episode in episodes] == [Outcome.RESOLVED] * len(suite.tasks)


HOOK = "@@ -0,0 +1,2 @@\n+def pytest_pyfunc_call(pyfuncitem):\n+    return True\n"
LINE = "+" + "x" * 100_000 + "\n"
PATCHES = {
    "a time after the name": "--- /dev/null\n+++ b/conftest.py 2020-01-01 00:00:00.000000000 +0000\n" + HOOK,
    "a word after the quoted name": '--- /dev/null\n+++ "b/conftest.py" x\n' + HOOK,
    "larger than the grader's disk": f"--- /dev/null\n+++ b/big.txt\n@@ -0,0 +1,80 @@\n{LINE * 80}",
}
"""Predictions that no diff of ours contains: git reads another name than we did, or there is no room."""


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PATCHES)
async def test_a_hostile_prediction_is_not_resolved_and_has_a_verdict(name, backend, suite):
    limits = Limits(memory_mb=256, pids=64, disk_mb=16)
    verdict = await grade(open_backend(backend), suite.tasks[0], PATCHES[name], limits)
    assert verdict.outcome in (Outcome.UNRESOLVED, Outcome.SUSPECT, Outcome.PATCH_INVALID), verdict.reason


def test_every_agent_has_a_row_that_says_what_it_tries_and_every_row_an_agent():
    files = {path.stem for path in CHEATS.glob("*.json")} - {"control"}
    assert files == set(AGENTS) and len(files) >= 24
    assert set(AGENTS) >= ALWAYS | set(EPISODES)


def test_no_command_holds_the_word_that_a_successful_probe_prints():
    for path in CHEATS.glob("*.json"):
        assert read_scripts(path)
        assert SUCCESS not in path.read_text(), path


@pytest.fixture
def bystanders() -> set[int]:
    """What other tests have left running below this process, like Python's resource tracker."""
    return set(processes_below(os.getpid()))


async def until_nothing_is_left(bystanders: set[int]) -> None:
    """No process below this one but reapers and bystanders, no container, no control group; within 20 seconds."""
    end = time.monotonic() + 20
    while left := [line for pid, line in processes_below(os.getpid()).items() if pid not in bystanders] + [*places_of(os.getpid())]:
        assert time.monotonic() < end, left
        await asyncio.sleep(0.1)


def processes_below(top: int) -> dict[int, str]:
    """pid -> command line of all that descends from a process, the reapers left out."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {top}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: line for pid in sorted(found - {top}) if (line := command_line(pid)) and "sandbox.reaper" not in line}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def places_of(owner: int) -> list[str]:
    """Control groups and containers of a process."""
    groups = [f"{top}/{name}" for top, names, _ in os.walk("/sys/fs/cgroup") for name in names if name.startswith("greengrad-")]
    listed = ["docker", "ps", "-a", "--format", '{{.Label "greengrad.owner"}} {{.Names}}']
    containers = subprocess.run(listed, capture_output=True, text=True, timeout=60, check=False).stdout if shutil.which("docker") else ""
    return [name for name in (*groups, *containers.splitlines()) if f".{owner}." in name]
