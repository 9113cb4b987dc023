#!/usr/bin/env python3
"""How fast the sandbox is, beside its peers on the same machine and image: latency of a command, of 1 MB, and episodes a second.

    python scripts/bench/sandbox.py [--quick] [--json FILE]

An episode: a machine, 10 commands, diff, teardown; with machines that serve 16 episodes and are wiped in between (as in training),
and "fresh" with a new one each time (as in grading). A fork: 50 MB in 500 files into another machine that waits. Peers are measured
where they are installed (pip install mini-swe-agent swe-rex) and a Docker daemon answers. SWE-ReX's server runs here without a
container, which only flatters it. Times are medians, in milliseconds.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from sandbox import Backend, Image, Limits, Pool, Sandbox, SandboxError, diff, ensure_environment, make_tree, open_backend

PINS = ("iniconfig==2.1.0", "packaging==25.0", "pluggy==1.6.0", "pygments==2.19.2", "pytest==8.4.1")
LIMITS = Limits(memory_mb=1024, disk_mb=256)
COMMANDS = 10
MEGABYTE = os.urandom(1 << 20)
PEER_IMAGE = "greengrad/bench:1"


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is done."""

    calls: int
    starts: int
    episodes: int
    """Per unit of concurrency."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    effort = Effort(50, 3, 2) if options.quick else Effort(300, 10, 8)
    with tempfile.TemporaryDirectory() as folder:
        image = make_image(Path(folder))
        figures = asyncio.run(measure_ours(image, effort))
        if "docker/exec_ms" in figures:
            figures |= measure_peers(image, effort)
    show(figures)
    if options.json:
        machine = {"cpus": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
        options.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")


def make_image(folder: Path) -> Image:
    """An environment with pytest and a repository of 100 files."""
    (folder / "source").mkdir()
    for number in range(100):
        (folder / "source" / f"module_{number}.py").write_text("def f(x):\n    return x\n" * 100)
    make_tree(folder / "source", folder / "tree.tar")
    return Image(ensure_environment(PINS), folder / "tree.tar")


async def measure_ours(image: Image, effort: Effort) -> dict[str, float]:
    """Both backends, where they work."""
    figures: dict[str, float] = {}
    for name in ("docker", "bubblewrap"):
        try:
            backend = open_backend(name)
        except SandboxError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        figures |= {f"{name}/{key}": value for key, value in (await measure_backend(backend, image, effort)).items()}
    return figures


async def measure_backend(backend: Backend, image: Image, effort: Effort) -> dict[str, float]:
    """Latencies in one machine, then starts, then episodes with a pool."""
    machine = await backend.start(image, LIMITS)
    try:
        figures = {
            "exec_ms": await median(lambda: machine.run("true"), effort.calls),
            "write_1mb_ms": await median(lambda: machine.write("/tmp/mb", MEGABYTE), effort.calls // 5),
            "read_1mb_ms": await median(lambda: machine.read("/tmp/mb"), effort.calls // 5),
        }
    finally:
        await machine.close()

    async def start_and_close() -> None:
        await (await backend.start(image, LIMITS)).close()

    figures["start_close_ms"] = await median(start_and_close, effort.starts)
    async with Pool(backend, LIMITS, 1, ahead=1) as pool:
        figures["handout_ms"] = await median(lambda: handout(pool, image), effort.starts, rest=1.0)
    async with Pool(backend, LIMITS, 2, ahead=1, reuse=100) as pool, pool.lease(image) as source:
        await source.run("for i in $(seq 500); do head -c 104857 /dev/urandom > /testbed/file_$i; done")
        figures["fork_50mb_ms"] = await median(lambda: handout(pool, image, source), effort.starts, rest=1.0)
    for concurrency in (1, 8):
        for name, reuse in (("episodes", 16), ("episodes_fresh", 1)):
            async with Pool(backend, LIMITS, concurrency, ahead=1, reuse=reuse) as pool:
                begin = time.perf_counter()
                await asyncio.gather(*(episode(pool, image) for _ in range(concurrency * effort.episodes)))
                figures[f"{name}_per_s_{concurrency}"] = concurrency * effort.episodes / (time.perf_counter() - begin)
    return figures


async def handout(pool: Pool, image: Image, like: Sandbox | None = None) -> float:
    """Milliseconds until a machine that was started ahead can be used (with the files of another one, where that is given)."""
    begin = time.perf_counter()
    async with pool.lease(image, like=like):
        return (time.perf_counter() - begin) * 1e3


async def episode(pool: Pool, image: Image) -> None:
    """Start, 10 commands, diff, teardown."""
    async with pool.lease(image) as machine:
        for number in range(COMMANDS):
            await machine.run(f"echo 'x = {number}' >> module_{number}.py && cat module_{number}.py | tail -n 5")
        patch = await diff(machine, image)
        assert patch.count("diff --git") == COMMANDS


async def median(call: Callable[[], Awaitable[Any]], count: int, rest: float = 0.0) -> float:
    """The median time of a call in milliseconds; what the call returns counts instead where it is a number."""
    times = []
    for _ in range(count):
        await asyncio.sleep(rest)
        begin = time.perf_counter()
        told = await call()
        times.append(told if isinstance(told, float) else (time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def measure_peers(image: Image, effort: Effort) -> dict[str, float]:
    """What is installed of the peers, on an image with the same environment and tree."""
    build = f"FROM {image.name}\nADD tree.tar /testbed\n"
    assert image.tree
    (image.tree.parent / "Dockerfile").write_text(build)
    (image.tree.parent / ".dockerignore").write_text("source\n")
    subprocess.run(["docker", "build", "--quiet", "--tag", PEER_IMAGE, image.tree.parent], check=True, capture_output=True, timeout=300)
    figures = measure_sdk(effort)
    if importlib.util.find_spec("minisweagent"):
        figures |= measure_mini(effort)
    if importlib.util.find_spec("swerex"):
        figures |= asyncio.run(measure_swerex(effort))
    subprocess.run(["docker", "rmi", "--force", PEER_IMAGE], check=True, capture_output=True, timeout=300)
    return figures


def measure_sdk(effort: Effort) -> dict[str, float]:
    """exec_run of the docker SDK."""
    import docker

    client = docker.from_env()
    container = client.containers.run(PEER_IMAGE, ["sleep", "600"], detach=True, network_mode="none")
    try:
        return {"docker_sdk/exec_ms": blocking_median(lambda: container.exec_run(["bash", "-c", "true"]), max(10, effort.calls // 5))}
    finally:
        container.remove(force=True)
        client.close()


def measure_mini(effort: Effort) -> dict[str, float]:
    """mini-swe-agent's DockerEnvironment: a `docker exec` for each command."""
    os.environ["MSWEA_SILENT_STARTUP"] = "1"
    logging.disable(logging.INFO)
    from minisweagent.environments.docker import DockerEnvironment

    def start() -> Any:
        return DockerEnvironment(image=PEER_IMAGE, cwd="/testbed", run_args=["--rm", "--network", "none"])

    def episode(_: int) -> None:
        environment = start()
        for number in range(COMMANDS):
            environment.execute({"command": f"echo 'x = {number}' >> module_{number}.py && cat module_{number}.py | tail -n 5"})
        told = environment.execute({"command": "git config --global --add safe.directory /testbed; git add -A && git diff --cached"})
        assert told["output"].count("diff --git") == COMMANDS, told
        subprocess.run(["docker", "rm", "--force", environment.container_id], check=True, capture_output=True, timeout=60)

    environment = start()
    figures = {"mini_swe_agent/exec_ms": blocking_median(lambda: environment.execute({"command": "true"}), max(10, effort.calls // 5))}
    subprocess.run(["docker", "rm", "--force", environment.container_id], check=True, capture_output=True, timeout=60)
    for concurrency in (1, 8):
        count = concurrency * max(1, effort.episodes // 2)
        with ThreadPoolExecutor(concurrency) as threads:
            begin = time.perf_counter()
            list(threads.map(episode, range(count)))
            figures[f"mini_swe_agent/episodes_per_s_{concurrency}"] = count / (time.perf_counter() - begin)
    return figures


async def measure_swerex(effort: Effort) -> dict[str, float]:
    """SWE-ReX's server and client: `execute`, and a command in a bash session."""
    from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest
    from swerex.runtime.remote import RemoteRuntime

    with swerex_server() as port:
        runtime = RemoteRuntime(host="http://127.0.0.1", port=port, auth_token="bench", timeout=30)
        await runtime.wait_until_alive(timeout=60)
        await runtime.create_session(CreateBashSessionRequest())
        calls = max(10, effort.calls // 10)
        figures = {
            "swe_rex/exec_ms": await median(lambda: runtime.execute(Command(command=["bash", "-c", "true"])), calls),
            "swe_rex/session_ms": await median(lambda: runtime.run_in_session(BashAction(command="true")), calls),
        }
        await runtime.close()
    return figures


@contextlib.contextmanager
def swerex_server(port: int = 18_463) -> Iterator[int]:
    """The server, on the loopback device."""
    command = [
        sys.executable,
        "-c",
        "from swerex.server import main; main()",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--auth-token",
        "bench",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield port
        finally:
            server.terminate()


def blocking_median(call: Callable[[], Any], count: int) -> float:
    """As median(), for a plain function."""

    async def once() -> None:
        call()

    return asyncio.run(median(once, count))


def show(figures: dict[str, float]) -> None:
    """A table, with each peer's figure as a multiple of ours with Docker (above 1: ours is better)."""
    for key, value in figures.items():
        who, what = key.split("/")
        ours = figures.get(f"docker/{what}", value)
        ratio = ours / value if "per_s" in what else value / ours
        print(f"{who:15} {what:18} {value:9.2f}" + ("" if who in ("docker", "bubblewrap") or ours == value else f"   {ratio:6.1f} x ours"))


if __name__ == "__main__":
    main()
