"""Soaks: many machines for a long time leave nothing behind, and under injected faults every episode has its true verdict or none.

`scripts/test --long` runs them: ten minutes of 64 machines on each backend, five minutes of faults. GREENGRAD_SOAK_SECONDS shortens both.
"""

import asyncio
import gc
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from pipeline.action import render
from pipeline.config import RolloutConfig
from pipeline.expert import ScriptedPolicy, make_expert
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.types import Episode, Policy, ToolCall
from sandbox import Backend, Limits, Pool, channel, diff
from sandbox import docker as docker_module
from sandbox.docker import Docker
from sandbox.store import home
from tasks import Outcome, Task, grade, toy_suite
from tests.daemons import Daemon

SECONDS = float(os.environ.get("GREENGRAD_SOAK_SECONDS", "0"))
CHAT = Chat(ByteTemplate())
LIMITS = Limits(memory_mb=128, pids=64, cpus=2.0, disk_mb=32, command_seconds=60.0, episode_seconds=900.0)


def wrong(task: Task) -> Policy:
    """Breaks the file and submits."""
    return ScriptedPolicy(CHAT, task, [render(ToolCall("bash", {"command": "echo 'def broken(:' >> calc.py"}))])


TRUTH = {"gold": Outcome.RESOLVED, "noop": Outcome.NO_PATCH, "wrong": Outcome.UNRESOLVED}
AGENTS = {"gold": make_expert("gold", CHAT), "noop": make_expert("noop", CHAT), "wrong": wrong}


@dataclass(slots=True)
class Tally:
    """What was issued and what came back."""

    issued: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, agent: str, episode: Episode) -> None:
        assert episode.verdict is not None
        self.outcomes[agent, episode.verdict.outcome.value] += 1

    def check(self) -> int:
        """Every episode has its true verdict, or none because the infrastructure failed; returns how many have none."""
        assert sum(self.outcomes.values()) == self.issued
        lies = {key: n for key, n in self.outcomes.items() if key[1] not in (TRUTH[key[0]].value, Outcome.INFRA.value)}
        assert not lies, lies
        return sum(n for (_, outcome), n in self.outcomes.items() if outcome == Outcome.INFRA.value)


async def work(rig: Rig, tasks: list[Task], tally: Tally, until: float, number: int) -> None:
    """One episode after the other."""
    while time.monotonic() < until:
        agent = ("gold", "noop", "wrong")[tally.issued % 3]
        task = tasks[tally.issued % len(tasks)]
        tally.issued += 1
        name = f"{number}-{tally.issued}"
        tally.note(agent, await run_episode(AGENTS[agent](task), task, rig, Slot(name, name)))


@asynccontextmanager
async def open_rig(backend: Backend, machines: int, graders: int, retries: int) -> AsyncIterator[Rig]:
    config = RolloutConfig(max_turns=6, infra_retries=retries)
    async with Pool(backend, LIMITS, machines, ahead=1, reuse=16) as acting, Pool(backend, LIMITS, graders, ahead=1) as grading:
        yield Rig(CHAT, acting, diff, partial(grade, grading, limits=LIMITS), config, 1 << 20, 60.0, 600.0, retry_seconds=0.2)


@dataclass(frozen=True, slots=True)
class Traces:
    """What this process may leave on a host."""

    containers: int
    volumes: int
    groups: int
    children: int
    descriptors: int
    threads: int
    disk_mb: int
    """Of the store: other programs write to this disk as well."""

    @staticmethod
    def now() -> "Traces":
        gc.collect()
        mine = f".{os.getpid()}."
        return Traces(
            containers=sum(mine in name for name in told("docker", "ps", "-a", "--format", '{{.Label "greengrad.owner"}}')),
            volumes=len(told("docker", "volume", "ls", "-q")),
            groups=sum("greengrad-" in top and mine in top for top, *_ in os.walk("/sys/fs/cgroup")),
            children=len(told("pgrep", "-P", str(os.getpid()))),
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            disk_mb=sum(path.lstat().st_size for path in home().rglob("*")) >> 20,
        )


def told(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.split() if shutil.which(command[0]) else []


def available_mb() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) >> 10


@pytest.mark.long
async def test_sixty_four_machines_for_ten_minutes_leave_nothing_behind(backend, tmp_path, capsys):
    tasks = list(toy_suite(tmp_path).tasks)
    warm = await asyncio.gather(*(backend.start(tasks[0].image, LIMITS) for _ in range(16)))  # its threads and connections exist now
    await asyncio.gather(*(machine.close() for machine in warm))
    before, free, tally = Traces.now(), available_mb(), Tally()
    begin, most = time.monotonic(), 0
    async with open_rig(backend, 64, 8, retries=0) as rig:
        workers = [work(rig, tasks, tally, begin + (SECONDS or 600.0), number) for number in range(64)]
        running = asyncio.gather(*workers)
        while not running.done():
            await asyncio.sleep(2)
            most = max(most, free - available_mb())
        await running
    seconds = time.monotonic() - begin
    assert tally.check() == 0, tally.outcomes
    after = Traces.now()
    for name in ("containers", "volumes", "groups", "children"):
        assert getattr(after, name) == getattr(before, name), (before, after)
    assert after.descriptors <= before.descriptors + 8 and after.threads <= before.threads + 20, (before, after)
    assert after.disk_mb <= before.disk_mb + 100, (before, after)
    with capsys.disabled():
        rate = f"{tally.issued} episodes in {seconds:.0f} s ({tally.issued / seconds:.2f}/s)"
        print(f"\n{backend.name}: {rate}, at most {most} MB more than before: {most / 74:.1f} MB a machine")


async def cause_trouble(daemon: Daemon, until: float) -> Counter[str]:
    """Containers killed and removed, the daemon frozen, and killed and started again, until it is time."""
    chance, done = random.Random(0), Counter[str]()
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        what = chance.choices(("kill", "remove", "freeze", "restart"), (10, 10, 2, 1))[0]
        done[what] += 1
        if what == "freeze":
            daemon.freeze()
            await asyncio.sleep(1.5)
            daemon.thaw()
        elif what == "restart":
            await asyncio.to_thread(daemon.kill)
            await asyncio.sleep(1)
            await asyncio.to_thread(daemon.start)
        elif names := await asyncio.to_thread(daemon.containers):
            command = ["kill"] if what == "kill" else ["rm", "--force"]
            docker = ["docker", "-H", daemon.host, *command, chance.choice(names)]
            await asyncio.to_thread(subprocess.run, docker, capture_output=True, timeout=60)
    return done


@pytest.mark.long
@pytest.mark.docker
async def test_under_injected_faults_every_episode_has_its_true_verdict_or_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(docker_module, "CALL_SECONDS", 10)
    monkeypatch.setattr(channel, "GRACE", 5.0)
    tasks, tally = list(toy_suite(tmp_path).tasks), Tally()
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="gg-")))
    try:
        daemon.copy_base()
        backend = Docker(host=daemon.host)
        await (await backend.start(tasks[0].image, LIMITS)).close()
        until = time.monotonic() + (SECONDS or 300.0)
        async with open_rig(backend, 6, 4, retries=2) as rig:
            workers = [work(rig, tasks, tally, until, number) for number in range(6)]
            trouble, *_ = await asyncio.gather(cause_trouble(daemon, until - 5), *workers)
        infra = tally.check()
        assert tally.issued > infra and sum(trouble.values()) > 0
        await backend.sweep()
        for name in daemon.containers():  # an owner that lives may not sweep its own: what failed to be removed ends by itself
            assert told("docker", "-H", daemon.host, "inspect", "--format", "{{.State.Running}}", name) == ["false"]
        with capsys.disabled():
            print(f"\n{dict(trouble)}: {tally.issued} episodes, {infra} without a verdict; {dict(tally.outcomes)}")
    finally:
        daemon.stop()
