"""One episode in real machines of both backends: the experts, what an agent does to its machine, what the host does to it."""

import asyncio
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.action import render
from pipeline.config import RolloutConfig
from pipeline.expert import ScriptedPolicy, make_expert
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.types import Stop, ToolCall
from sandbox import Limits, Pool, diff
from tasks import Outcome, grade
from tasks.toy import toy_suite

CHAT = Chat(ByteTemplate())
LIMITS = Limits(memory_mb=256, pids=64, disk_mb=64, command_seconds=10.0, episode_seconds=300.0)
EDIT = render(ToolCall("edit", {"path": "calc.py", "old": "a - b", "new": "a + b"}))
SUBMIT = render(ToolCall("submit", {}))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return toy_suite(tmp_path_factory.mktemp("toy"))


@pytest.fixture
async def rig(backend):
    config = RolloutConfig(max_turns=6, infra_retries=1)
    async with Pool(backend, LIMITS, 2) as machines, Pool(backend, LIMITS, 2) as graders:
        judge = partial(grade, graders, limits=LIMITS)
        yield Rig(CHAT, machines, diff, judge, config, 1 << 20, LIMITS.command_seconds, 120.0, retry_seconds=0.1)


def do(command):
    return render(ToolCall("bash", {"command": command}))


async def attempt(rig, task, *texts):
    return await run_episode(ScriptedPolicy(CHAT, task, texts), task, replace(rig), Slot("e", "g"))


async def test_the_expert_resolves_every_task_and_noop_none(rig, suite):
    for task in suite.tasks:
        gold = await run_episode(make_expert("gold", CHAT)(task), task, rig, Slot("gold", "g"))
        assert (gold.stop, gold.reward) == (Stop.SUBMITTED, 1.0), (gold.verdict, [turn.observation for turn in gold.turns])
        assert [turn.call.name for turn in gold.turns] == ["view", "edit", "bash", "submit"]
        noop = await run_episode(make_expert("noop", CHAT)(task), task, rig, Slot("noop", "g"))
        assert (noop.verdict.outcome, noop.reward) == (Outcome.NO_PATCH, 0.0)


async def test_what_the_tools_show_is_what_is_there(rig, suite):
    texts = [
        render(ToolCall("view", {"path": "calc.py", "name": "double"})),
        render(ToolCall("view", {"path": "/etc/shadow"})),
        render(ToolCall("view", {"path": "tests"})),
        render(ToolCall("edit", {"path": "/usr/new.py", "old": "", "new": "x"})),
        do("printf 'a\\nb'; exit 3"),
    ]
    episode = await attempt(rig, suite.tasks[0], *texts)
    seen = [turn.observation for turn in episode.turns]
    assert seen[0] == "calc.py lines 5-6 of 6:\ndef double(a):\n    return a * 2"
    assert seen[1].startswith("error: ") and seen[2].startswith("error: tests is a directory") and seen[3].startswith("error: ")
    assert seen[4] == "a\nb\n[exit code 3]"


async def test_a_hanging_command_dies_and_the_next_one_works(rig, suite):
    rig = replace(rig, command_seconds=1.0)
    episode = await attempt(rig, suite.tasks[0], do("sleep 600 & sleep 600"), do("echo still here"), EDIT, SUBMIT)
    assert "over the time limit" in episode.turns[0].observation and "still here" in episode.turns[1].observation
    assert episode.reward == 1.0


@pytest.mark.parametrize(
    "harm",
    [
        "kill -9 -1; kill -9 1",
        "python3 -c 'x = bytearray(10**9)'",
        "head -c 200M /dev/zero > /tmp/full; head -c 200M /dev/zero > /testbed/full",
        ":(){ :|:& };: ",
    ],
)
async def test_what_an_agent_does_to_its_machine_is_graded(rig, suite, harm):
    episode = await attempt(replace(rig, command_seconds=5.0), suite.tasks[0], EDIT, do(harm), SUBMIT)
    assert episode.stop in (Stop.SUBMITTED, Stop.RESOURCE) and episode.retries == 0, episode.error
    assert episode.reward in (0.0, 1.0)


async def test_a_machine_killed_from_outside_in_mid_episode_is_retried_and_graded(rig, suite):
    episode = await run_while_killing(rig, suite.tasks[0], kills=1)
    assert (episode.stop, episode.reward, episode.retries) == (Stop.SUBMITTED, 1.0, 1), episode.error


async def test_a_machine_killed_from_outside_every_time_is_infrastructure(rig, suite):
    episode = await run_while_killing(rig, suite.tasks[0], kills=9)
    assert (episode.stop, episode.reward, episode.verdict.outcome, episode.retries) == (Stop.INFRA, None, Outcome.INFRA, 1)


async def run_while_killing(rig, task, kills):
    """An episode whose first command sleeps; each time it is seen, its machine's first process is killed from the host."""
    running = asyncio.create_task(attempt(rig, task, do("sleep 4.0321; true"), EDIT, SUBMIT))
    killed = set()
    while not running.done():
        for pid in find_processes(b"sleep\x004.0321\x00"):
            first = find_first(pid)
            if first not in killed and len(killed) < kills:
                killed.add(first)
                os.kill(first, signal.SIGKILL)
        await asyncio.sleep(0.05)
    return running.result()


def find_processes(command):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == command:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def find_first(pid):
    """The host's number of process 1 of the machine that this process is in."""
    while True:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        if status["NSpid"].split()[-1] == "1":
            return pid
        pid = int(status["PPid"])
