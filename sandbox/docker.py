"""A machine as a container of a Docker daemon, over the docker SDK; knows nothing of bubblewrap, tasks or git.

covered:     no network, no capabilities, no-new-privileges, Docker's seccomp profile and ours, uid 1000; memory (without swap), processes,
             cpu and file size; a read-only root, sized tmpfs for what can be written (it counts as memory, so the memory limit is
             memory_mb + disk_mb); nothing of the host is mounted; no Docker socket. Commands go over the attached stream of process 1:
             no exec API, no port. Every call has a time limit; calls run on a few threads.
             A container ends when its owner dies (its stdin closes) or its life is over; a reaper and sweep() remove what is left.
             An image's own repository in WORKDIR never comes into a machine as it is: it is taken out as a tree and sealed first.
not covered: the kernel (it is shared; use a daemon with gVisor or Kata for more); io bandwidth. A daemon over TLS or ssh was never tried.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import LogConfig, Ulimit
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import RequestException
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from .attached import Attached, attach
from .base import Image, Limits, ResourceExhausted, SandboxError
from .channel import Channel
from .docker_images import SUPERVISOR, digest, ensure
from .images import PREFIX
from .machine import PLACES, Machine, new_id, shares
from .own_repo import own_tree
from .owner import is_dead, owner
from .reaper import guard
from .repo import unpack

log = logging.getLogger(__name__)
LIFE_OVER = 97
"""The supervisor's exit code at the end of Limits.episode_seconds."""
CALL_SECONDS = 60
"""Time limit of one call to the daemon."""
OWNER, UNTIL = "greengrad.owner", "greengrad.until"
T = TypeVar("T")


class Docker:
    """The backend: starts containers. One client, a few threads for its blocking calls."""

    name = "docker"

    def __init__(self, patience: float = 2.0, host: str | None = None, image_gb: float = 100.0, guarded: bool = True) -> None:
        """Connect to a daemon ("unix://...", "tcp://...", "ssh://..."; None: the one that the environment names).

        SandboxError where none answers within `patience` seconds. `image_gb`: what images of ours may take of its disk.
        `guarded`: a reaper removes what this process leaves when it dies.
        """
        try:
            with contextlib.closing(_connect(host, patience)) as client:
                client.ping()
            self._client = _connect(host, CALL_SECONDS)
            self.cpus = int(self._client.info()["NCPU"])
        except (DockerException, RequestException) as error:
            raise SandboxError(_why_not(error)) from error
        if guarded:
            guard(self.name, host)
        self._threads = ThreadPoolExecutor(8, "docker")
        self._image_gb = image_gb
        self._ready: dict[tuple[str, str], str] = {}
        self._unremoved: set[str] = set()

    async def start(self, image: Image, limits: Limits) -> Machine:
        """A fresh machine with the image's tree in WORKDIR."""
        if image.tree is None and not image.name.startswith(PREFIX):
            raise SandboxError(f"{image.name} holds its own repository, with all its history: it must be sealed before it is started")
        name, api = new_id(), self._client.api
        limits = replace(limits, cpus=min(limits.cpus, self.cpus))
        runnable = await self._runnable(image)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._discard, name)
            try:
                await self._retrying(_create, api, name, runnable, limits)
            except SandboxError:
                self._ready.pop((image.name, image.home), None)  # another process may have removed the image
                raise
            wire = await attach(await self._call(_attached_socket, api, name))
            undo.callback(wire.close)
            await self._retrying(api.start, name)
            channel = Channel(wire, functools.partial(self._explain, name, wire), limits)
            machine = Machine(name, channel, limits, undo.pop_all().aclose)
            undo.push_async_callback(machine.close)
            await machine.renew()
            await unpack(machine, image)
            undo.pop_all()
        return machine

    async def prepare(self, image_name: str) -> str:
        """Make an image available, built or pulled; the registry's digest, or its id."""
        await self._runnable(Image(image_name))
        return await self._retrying(digest, self._client.api, image_name)

    async def own_tree(self, image: Image) -> Path:
        """The repository that an image holds in its home, as a tree file in the store; the image is not started for it."""
        identity = await self.prepare(image.name)
        return await self._retrying(own_tree, self._client.api, image, identity)

    async def _runnable(self, image: Image) -> str:
        """The name under which an image can be started; it is made available first."""
        key = (image.name, image.home)
        if key not in self._ready:
            self._ready[key] = await self._retrying(ensure, self._client.api, image, self._image_gb)
        return self._ready[key]

    async def sweep(self) -> int:
        """Remove the containers of dead owners, and those whose life is over."""
        found = await self._call(self._client.api.containers, all=True, filters={"label": OWNER})
        dead = [entry["Id"] for entry in found if _is_stale(entry["Labels"])]
        for container in [*dead, *self._unremoved]:
            await self._call(_remove, self._client.api, container)
            self._unremoved.discard(container)
        return len(dead)

    async def _discard(self, name: str) -> None:
        """Remove a container, and those that could not be removed before. It ends by itself in any case, as its stdin is closed."""
        for one in [name, *self._unremoved]:
            try:
                await self._call(_remove, self._client.api, one)
            except SandboxError as error:
                log.warning("%s could not be removed, which will be tried again: %s", one, error)
                self._unremoved.add(one)
                return
            self._unremoved.discard(one)

    async def _explain(self, name: str, wire: Attached, seen: str) -> Exception:
        """Why the channel failed, from the daemon's record of how the container ended."""
        try:
            async with asyncio.timeout(20):
                state = await self._call(_final_state, self._client.api, name)
        except (TimeoutError, SandboxError) as error:
            return SandboxError(f"{name}: {seen}; the Docker daemon does not tell more: {error}")
        if state.get("Running"):
            return SandboxError(f"{name}: {seen}; the container runs, but its channel is gone")
        if state["ExitCode"] == LIFE_OVER:
            return ResourceExhausted(f"{name}: its life is over (Limits.episode_seconds)")
        if state["OOMKilled"]:
            return ResourceExhausted(f"{name}: out of memory, the kernel killed its supervisor")
        return SandboxError(f"{name}: {seen}; it ended with {state['ExitCode']} {state['Error']}{wire.words.decode('utf-8', 'replace')}")

    async def _retrying(self, function: Callable[..., T], *arguments: Any) -> T:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_is_hiccup), stop=stop_after_attempt(3), wait=wait_exponential(multiplier=0.2, max=2.0), reraise=True
        ):
            with attempt:
                return await self._call(function, *arguments)
        raise AssertionError("unreachable: tenacity raises the last error")

    async def _call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """A blocking call on a thread. A cancelled caller still waits for its end: what it made must be known to be removed."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *arguments, **named))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
        except (DockerException, RequestException) as error:
            raise SandboxError(f"Docker: {error}") from error


def _connect(host: str | None, seconds: float) -> docker.DockerClient:
    if host is None:
        return docker.from_env(timeout=seconds, max_pool_size=64)
    return docker.DockerClient(base_url=host, timeout=seconds, max_pool_size=64)


def _attached_socket(api: docker.APIClient, name: str) -> Any:
    return api.attach_socket(name, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})


def _create(api: docker.APIClient, name: str, image: str, limits: Limits) -> None:
    memory = f"{limits.memory_mb + limits.disk_mb}m"
    host = api.create_host_config(
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        tmpfs={place: f"rw,exec,nosuid,nodev,{options}" for place, options in _places(limits.disk_mb)},
        shm_size=shares(limits.disk_mb)["/dev/shm"],
        mem_limit=memory,
        memswap_limit=memory,
        nano_cpus=int(limits.cpus * 1e9),
        pids_limit=limits.pids + 1,
        ulimits=[Ulimit(name="fsize", soft=limits.disk_mb << 20, hard=limits.disk_mb << 20), Ulimit(name="core", soft=0, hard=0)],
        ipc_mode="private",
        log_config=LogConfig(type="none"),
    )
    until = int(time.time() + 2 * limits.episode_seconds + 600)
    try:
        api.create_container(
            image,
            command=[str(limits.episode_seconds), str(limits.disk_mb << 20), "0", "0"],
            entrypoint=[SUPERVISOR],
            name=name,
            hostname="sandbox",
            user="1000:1000",
            working_dir="/",
            stdin_open=True,
            labels={OWNER: owner(), UNTIL: str(until)},
            host_config=host,
        )
    except APIError as error:
        if error.status_code != 409:  # the name is ours alone: an earlier try made it and its answer was lost
            raise


def _places(disk_mb: int) -> list[tuple[str, str]]:
    """The writable places with their tmpfs options; /dev/shm is Docker's own."""
    sizes = {place: size for place, size in shares(disk_mb).items() if place != "/dev/shm"}
    return [(place, f"size={size},mode={PLACES[place]},uid=1000,gid=1000") for place, size in sizes.items()]


def _remove(api: docker.APIClient, name: str) -> None:
    try:
        api.remove_container(name, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # its removal is under way
            raise


def _final_state(api: docker.APIClient, name: str) -> dict[str, Any]:
    """The container's State once it has ended, or after a moment when it has not."""
    for _ in range(20):
        state: dict[str, Any] = api.inspect_container(name)["State"]
        if not state["Running"]:
            return state
        time.sleep(0.1)
    return state


def _is_stale(labels: dict[str, str]) -> bool:
    return is_dead(labels[OWNER]) or time.time() > float(labels.get(UNTIL, 0))


def _is_hiccup(error: BaseException) -> bool:
    """The daemon was out for a moment: worth another try."""
    cause = error.__cause__
    return isinstance(cause, NoConnection) or (isinstance(cause, APIError) and cause.is_server_error())


def _why_not(error: Exception) -> str:
    if "Permission" in str(error):
        return "no permission on the Docker daemon's socket: join the group docker, or use --sandbox bubblewrap"
    return f"no Docker daemon answers (is dockerd running? DOCKER_HOST?): {str(error)[:200]}"
