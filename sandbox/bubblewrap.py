"""A machine made of namespaces by bwrap, where no Docker daemon answers; knows nothing of Docker, tasks or git.

covered:     new user, pid, network (none), ipc, uts and cgroup namespaces; no capabilities, no-new-privileges, our seccomp filter;
             uid 1000 inside and, when we are root, an ordinary uid outside that no one else has; a read-only root of the host's /usr and
             this Python (site-packages and all programs that bring Python packages masked), a /etc of our own, nothing of /home, /root
             or the host's environment; what can be written is tmpfs of a set size and counts as memory, so the memory limit is
             memory_mb + disk_mb.
             Memory, processes and cpu: a control group of version 1 or 2 where we may make one. Otherwise RLIMIT_NPROC (the own uid as
             root, the user namespace's count for others), RLIMIT_AS for each process, and the affinity of the cpus.
not covered: without a control group the sum of the processes' memory; the kernel itself (it is shared); io bandwidth; images of
             other distributions. A sandbox that cannot be limited is refused.
"""

import asyncio
import functools
import logging
import subprocess
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from contextlib import AsyncExitStack
from pathlib import Path

from . import cgroup
from .base import Image, Limits, ResourceExhausted, SandboxError
from .bwrap import machine_command, probe_command
from .channel import CHUNK, Channel
from .images import bubblewrap_environment
from .machine import Machine, new_id
from .owner import owner
from .reaper import guard
from .repo import unpack

log = logging.getLogger(__name__)
LIFE_OVER = 97
"""The supervisor's exit code at the end of Limits.episode_seconds."""
PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""The whole environment of what starts a machine."""


class Bubblewrap:
    """The backend: starts machines with bwrap."""

    name = "bubblewrap"

    def __init__(self, control_groups: bool = True) -> None:
        """SandboxError where bwrap is missing or may not make namespaces. Without control groups: the limits of an ordinary user."""
        self._control_groups = control_groups
        done = subprocess.run(probe_command(), env=PATH, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise SandboxError(
                f"bwrap may not make namespaces here ({done.stderr.strip()[-300:]}); allow unprivileged user namespaces "
                "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or use Docker"
            )
        guard(self.name)

    async def start(self, image: Image, limits: Limits) -> Machine:
        """A fresh machine with the image's tree in WORKDIR."""
        environment = await asyncio.to_thread(bubblewrap_environment, image.name)
        name = new_id()
        async with AsyncExitStack() as undo:
            group = cgroup.create(f"{name}@{owner()}", limits, limits.disk_mb) if self._control_groups else None
            if group:
                undo.push_async_callback(group.remove)
            try:
                process, transport = await _spawn(machine_command(environment, limits, group))
            except OSError as error:
                raise SandboxError(f"bwrap cannot be started: {error}") from error
            channel = Channel(_Pipes(process), functools.partial(_explain, name, process, group), limits)
            machine = Machine(name, channel, limits, functools.partial(_clear, process, transport, group))
            undo.push_async_callback(machine.close)
            await machine.renew()
            await unpack(machine, image)
            undo.pop_all()
        return machine

    async def prepare(self, image_name: str) -> str:
        """Make the virtual environment of an image; its name is the hash of its requirements."""
        await asyncio.to_thread(bubblewrap_environment, image_name)
        return image_name.rpartition(":")[2]

    async def own_tree(self, image: Image) -> Path:
        """SandboxError: an environment made here holds no repository."""
        raise SandboxError(
            f"{image.name}: bubblewrap has no images that hold a repository; use Docker, or give the repository as a tree file"
        )

    async def sweep(self) -> int:
        """Machines end with their owner by themselves; this removes the empty control groups of dead owners."""
        return await asyncio.to_thread(cgroup.sweep)


async def _spawn(command: list[str]) -> tuple[Process, asyncio.SubprocessTransport]:
    """create_subprocess_exec, but with the transport: only its close() leaves no open pipe behind."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        lambda: SubprocessStreamProtocol(limit=2 * CHUNK, loop=loop),
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        env=PATH,
    )
    return Process(transport, protocol, loop), transport


class _Pipes:
    """The supervisor's stdin and stdout as a Wire."""

    def __init__(self, process: Process) -> None:
        assert process.stdin and process.stdout
        self._in, self._out = process.stdin, process.stdout

    async def read(self) -> bytes:
        return await self._out.read(CHUNK)

    def send(self, data: bytes) -> None:
        self._in.write(data)

    async def drain(self) -> None:
        await self._in.drain()


async def _explain(name: str, process: Process, group: cgroup.Group | None, seen: str) -> Exception:
    """Why the channel failed: the machine is ended, then its exit code and its control group tell."""
    ended = process.returncode is not None or seen.startswith("the channel broke")
    code = await _end(process, 2.0 if ended else 0.0)
    if code == LIFE_OVER:
        return ResourceExhausted(f"{name}: its life is over (Limits.episode_seconds)")
    if group and group.oom_kills():
        return ResourceExhausted(f"{name}: out of memory, the kernel killed its supervisor")
    assert process.stderr
    words = (await process.stderr.read()).decode("utf-8", "replace").strip()[-500:]
    return SandboxError(f"{name}: {seen}; bwrap ended with {code}{': ' + words if words else ''}")


async def _end(process: Process, patience: float) -> int | None:
    """End bwrap, and with it everything inside; `patience` seconds are left for it to end by itself. None: it does not even die."""
    for seconds in (patience, 10.0):
        try:
            return await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            if process.returncode is None:
                process.kill()
    log.warning("bwrap %d was killed and does not end", process.pid)
    return None


async def _clear(process: Process, transport: asyncio.SubprocessTransport, group: cgroup.Group | None) -> None:
    await _end(process, 0.0)
    transport.close()
    if group:
        await group.remove()
