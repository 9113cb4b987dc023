"""Several Docker hosts, and their images: placement, failover, a disk budget, pulls that fail."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest
from tenacity import RetryCallState

from sandbox import Limits, Pool, SandboxError, docker_images, ensure_environment, open_backend
from sandbox.docker import Docker
from sandbox.fleet import Fleet
from tests.daemons import Daemon

LIMITS = Limits(memory_mb=128, pids=32, cpus=1.0, disk_mb=16, command_seconds=10.0, episode_seconds=120.0)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    own = Daemon(Path(tempfile.mkdtemp(prefix="gg-")))
    own.copy_base()
    yield own
    own.stop()


def first_host() -> str:
    return docker.from_env().api.base_url.replace("http+docker://localhost", "unix:///var/run/docker.sock")


@pytest.mark.docker
async def test_machines_start_where_most_room_is(daemon, image):
    fleet = Fleet([first_host(), daemon.host])
    machines = [await fleet.start(image, LIMITS) for _ in range(4)]
    try:
        assert len(daemon.containers()) == 2
        assert {(await machine.run("cat calc.py")).exit_code for machine in machines} == {0}
        for machine in machines[:2]:
            await machine.close()
        machines += [await fleet.start(image, LIMITS), await fleet.start(image, LIMITS)]
        assert len(daemon.containers()) == 2
    finally:
        await asyncio.gather(*(machine.close() for machine in machines))
    assert daemon.containers() == []


@pytest.mark.docker
async def test_a_host_that_dies_is_left_out_and_the_work_goes_on_elsewhere(daemon, image):
    fleet = Fleet([daemon.host, first_host()])
    first = await fleet.start(image, LIMITS)
    assert daemon.containers() == [first.id]
    daemon.kill()
    with pytest.raises(SandboxError):
        await first.run("true", seconds=1)
    await first.close()
    async with Pool(fleet, LIMITS, concurrency=2) as pool:
        for _ in range(2):
            async with pool.lease(image) as machine:
                assert (await machine.run("echo alive")).text == "alive\n"
    daemon.start()
    fleet._hosts[0].rests_until = 0.0
    machines = [await fleet.start(image, LIMITS) for _ in range(2)]
    assert len(daemon.containers()) == 2, "one that runs, and one that could not be removed while its daemon was dead"
    await asyncio.gather(*(machine.close() for machine in machines))
    assert daemon.containers() == []


async def test_when_no_host_answers_each_is_named_with_its_reason(image, tmp_path):
    fleet = open_backend("docker", [f"unix://{tmp_path}/a.sock", f"unix://{tmp_path}/b.sock"])
    for call in (fleet.start(image, LIMITS), fleet.sweep()):
        with pytest.raises(SandboxError, match=r"a\.sock: no Docker daemon answers.*b\.sock: no Docker daemon answers"):
            await call


def test_hosts_are_dockers(tmp_path):
    with pytest.raises(ValueError, match="bubblewrap runs on this one only"):
        open_backend("bubblewrap", ["unix:///x"])


@pytest.mark.docker
async def test_images_are_removed_when_the_budget_is_reached_longest_unused_first_and_never_one_in_use(daemon, image):
    backend = Docker(host=daemon.host, guarded=False)
    api = backend._client.api
    names = [ensure_environment([f"iniconfig=={version}"]) for version in ("2.1.0", "2.0.0", "1.1.1")]
    for name in names:
        await backend.prepare(name)
    machine = await backend.start(image, LIMITS)
    try:
        size = api.inspect_image(names[0])["Size"]
        removed = docker_images.make_room(api, 2.5 * size / 1e9, {image.name})
        assert names[0] in removed and image.name not in removed
        everything = docker_images.make_room(api, 0.0, set())
        assert image.name not in everything and set(names) <= {*removed, *everything}
        assert docker_images._exists(api, docker_images.BASE)
    finally:
        await machine.close()
    again = await backend.start(image, LIMITS)
    await again.close()


@pytest.mark.docker
async def test_an_image_that_another_process_removed_is_made_again(daemon, image):
    backend = Docker(host=daemon.host, guarded=False)
    await backend.prepare(image.name)
    backend._client.api.remove_image(image.name, force=True)
    with pytest.raises(SandboxError):
        await backend.start(image, LIMITS)
    await (await backend.start(image, LIMITS)).close()


@pytest.mark.docker
async def test_an_image_that_no_registry_has_is_told_in_bounded_time(monkeypatch):
    monkeypatch.setattr(docker_images, "_pause", lambda state: 0.0)
    with pytest.raises(SandboxError, match="greengrad-none"):
        await Docker(guarded=False).prepare("greengrad-none/such:1")


def test_a_rate_limit_is_waited_out_longer_than_a_hiccup():
    def pause(error: Exception, attempt: int) -> float:
        state = RetryCallState(None, None, (), {})
        state.attempt_number = attempt
        state.set_exception((type(error), error, None))
        return docker_images._pause(state)

    assert [pause(SandboxError("connection reset"), attempt) for attempt in (1, 2, 3)] == [2, 4, 8]
    assert [pause(SandboxError("toomanyrequests: You have reached your pull rate limit"), attempt) for attempt in (1, 2, 4)] == [
        60,
        120,
        300,
    ]
    assert not docker_images._may_pass(SandboxError("x: manifest unknown")) and docker_images._may_pass(SandboxError("x: 429"))


@contextlib.asynccontextmanager
async def forwarded(path: str) -> AsyncIterator[str]:
    """A TCP address on the loopback device behind which a Unix socket answers."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, back), pump(there, writer))
        back.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.docker
async def test_a_host_is_reached_over_tcp_as_over_a_unix_socket(daemon, image):
    async with forwarded(daemon.host.removeprefix("unix://")) as url:
        fleet = Fleet([url])
        machine = await fleet.start(image, LIMITS)
        assert daemon.containers() == [machine.id]
        assert (await machine.run("cat", stdin=b"x" * (3 << 20))).dropped_bytes > 0 and (await machine.run("cat calc.py")).exit_code == 0
        await machine.close()
        assert daemon.containers() == []
