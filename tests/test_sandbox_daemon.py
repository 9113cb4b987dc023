"""A daemon that freezes, dies and comes back: every wait ends, nothing is taken for a verdict, nothing stays behind."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Limits, Pool, SandboxError, channel
from sandbox import docker as docker_module
from sandbox.docker import Docker
from tests.daemons import Daemon

pytestmark = pytest.mark.docker
LIMITS = Limits(memory_mb=256, pids=64, disk_mb=32, command_seconds=10.0, episode_seconds=120.0)
BOUND = 12.0
"""Seconds within which everything must end here: the patience of a test, not of a run."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Its own daemon; the path is short, because the path of a socket must be."""
    folder = Path(tempfile.mkdtemp(prefix="gg-"))
    own = Daemon(folder)
    own.copy_base()
    yield own
    own.stop()
    assert not folder.exists()


@pytest.fixture
async def backend(daemon: Daemon, monkeypatch) -> Docker:
    monkeypatch.setattr(docker_module, "CALL_SECONDS", 2)
    monkeypatch.setattr(channel, "GRACE", 2.0)
    return Docker(host=daemon.host, guarded=False)


async def within_bound(work) -> float:
    begin = time.monotonic()
    async with asyncio.timeout(BOUND * 3):
        with pytest.raises(SandboxError):
            await work
    return time.monotonic() - begin


async def test_every_call_to_a_frozen_daemon_ends_and_a_thawed_one_serves_again(daemon, backend, image):
    machine = await backend.start(image, LIMITS)
    daemon.freeze()
    try:
        assert await within_bound(backend.start(image, LIMITS)) < BOUND
        assert await within_bound(machine.run("true", seconds=1)) < BOUND
        assert await within_bound(machine.read("/testbed/calc.py")) < BOUND
        assert await within_bound(backend.sweep()) < BOUND
        begin = time.monotonic()
        await machine.close()
        assert time.monotonic() - begin < BOUND
    finally:
        daemon.thaw()
    again = await backend.start(image, LIMITS)
    assert (await again.run("echo alive")).text == "alive\n"
    await again.close()
    await remove_all(daemon, backend)


async def test_a_pool_on_a_frozen_daemon_closes(daemon, backend, image):
    daemon_is_frozen = False
    begin = time.monotonic()
    try:
        with pytest.raises(SandboxError):
            async with Pool(backend, LIMITS, concurrency=2, ahead=2, reuse=4) as pool, pool.lease(image) as machine:
                daemon.freeze()
                daemon_is_frozen, begin = True, time.monotonic()
                await machine.run("true", seconds=1)
    finally:
        if daemon_is_frozen:
            daemon.thaw()
    assert time.monotonic() - begin < 3 * BOUND
    await remove_all(daemon, backend)


async def test_a_daemon_that_is_killed_takes_its_machines_with_it_and_the_next_one_serves(daemon, backend, image):
    machine = await backend.start(image, LIMITS)
    daemon.kill()
    assert await within_bound(machine.run("true", seconds=1)) < BOUND
    await machine.close()
    daemon.start()
    again = await backend.start(image, LIMITS)
    assert (await again.run("echo alive")).text == "alive\n"
    await again.close()
    await remove_all(daemon, backend)


STEPS = ("_create", "_attached_socket", "ensure")


@pytest.mark.parametrize("step", STEPS)
async def test_a_start_that_fails_at_any_step_leaves_no_container(daemon, backend, image, monkeypatch, step):
    honest = getattr(docker_module, step)

    def fail_after(*arguments):
        honest(*arguments)
        raise docker_module.DockerException(f"the connection was lost after {step}")

    monkeypatch.setattr(docker_module, step, fail_after)
    with pytest.raises(SandboxError, match=step):
        await backend.start(image, LIMITS)
    assert daemon.containers() == []


@pytest.mark.parametrize("moment", ["in a command", "in a write", "in the diff", "before anything"])
async def test_a_container_that_is_removed_at_any_moment_is_a_failure_of_the_machine(daemon, backend, image, moment):
    from sandbox import diff

    machine = await backend.start(image, LIMITS)
    work = {
        "in a command": lambda: machine.run("sleep 5"),
        "in a write": lambda: write_much(machine),
        "in the diff": lambda: diff_much(machine, image, diff),
        "before anything": lambda: asyncio.sleep(1.5, machine.id),
    }[moment]()
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(docker_module._remove, backend._client.api, machine.id)
    if moment == "before anything":
        await task
        task = asyncio.ensure_future(machine.run("true"))
    assert await within_bound(task) < BOUND
    await machine.close()
    assert daemon.containers() == []


async def write_much(machine) -> None:
    while True:
        await machine.write("/tmp/x", b"x" * (8 << 20))


async def diff_much(machine, image, diff) -> None:
    while True:
        await diff(machine, image)


async def remove_all(daemon: Daemon, backend: Docker) -> None:
    """What could not be removed is removed by the next sweep of the same process."""
    end = time.monotonic() + BOUND
    while daemon.containers():
        assert time.monotonic() < end, daemon.containers()
        await backend.sweep()
        await asyncio.sleep(0.2)
