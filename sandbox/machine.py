"""A sandbox as both backends make it: the exec channel, the environment of a command, one teardown; knows nothing of how it was started."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from .base import WORKDIR, ExecResult, Limits, SandboxError
from .channel import Channel

HOME = "/home/agent"
ENVIRONMENT = {
    "PATH": "/opt/env/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "VIRTUAL_ENV": "/opt/env",
    "HOME": HOME,
    "USER": "agent",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "PYTHONUNBUFFERED": "1",
    "PIP_NO_INPUT": "1",
}
"""What every command sees; nothing of the host's environment."""

PLACES = {WORKDIR: "0755", "/tmp": "1777", HOME: "0755", "/dev/shm": "1777"}
"""All that can be written, each a tmpfs of its own, and its mode."""
WIPE = f"""
export PATH=/usr/bin:/bin
places="{" ".join(PLACES)}"
[ ! -d /dev/mqueue ] || places="$places /dev/mqueue"
for place in $places; do
    case $place in {WORKDIR} | {HOME}) mode=0755 ;; *) mode=1777 ;; esac
    [ ! -O $place ] || {{ chmod $mode $place && touch $place; }} || exit 1
done
find $places -mindepth 1 -delete 2>/dev/null || {{
    find $places -mindepth 1 -maxdepth 1 -type d -exec chmod -R u+rwX {{}} +
    find $places -mindepth 1 -delete
}}
left=$(find $places -mindepth 1 -print -quit) && [ -z "$left" ] || exit 1
"""
"""Removes all that an agent has written. Its processes are dead, so nothing can be put back meanwhile; the programs used here lie on a
read-only root. What is no file cannot stay either: System V ipc, message queues, keys and extended attributes are refused (filter.h)."""

COPY = f"""
export PATH=/usr/bin:/bin
find {" ".join(PLACES)} -mindepth 1 ! -readable ! -type l -exec chmod u+rX {{}} + 2>/dev/null
set -o pipefail
find {" ".join(PLACES)} -mindepth 1 -maxdepth 1 -print0 | tar --create --format=posix --sparse --absolute-names --null --files-from=-
"""
PASTE = "exec /bin/tar --extract --absolute-names --preserve-permissions --no-same-owner --delay-directory-restore --directory=/"


def new_id() -> str:
    """A name for a machine that no other has."""
    return f"greengrad-{secrets.token_hex(6)}"


def shares(disk_mb: int) -> dict[str, int]:
    """Bytes of each writable place; together disk_mb."""
    whole = disk_mb << 20
    return dict(zip(PLACES, (whole // 2, whole * 3 // 8, whole // 16, whole // 16), strict=True))


class Machine:
    """One started machine. `remove` tears it down, whatever state it is in; it is called once."""

    def __init__(self, name: str, channel: Channel, limits: Limits, remove: Callable[[], Awaitable[None]]) -> None:
        self.id, self._channel, self._limits, self._remove = name, channel, limits, remove
        self._closing: asyncio.Task[None] | None = None
        self._when_closed: list[Callable[[], None]] = []

    async def run(
        self, command: str, *, cwd: str = WORKDIR, env: dict[str, str] | None = None, stdin: bytes = b"", seconds: float | None = None
    ) -> ExecResult:
        """Run `bash -c command` in its own session; at its time limit it dies with all its children."""
        limit = self._limits.command_seconds if seconds is None else seconds
        return await self._channel.exec(("/bin/bash", "-c", command), cwd, ENVIRONMENT | (env or {}), stdin, limit)

    async def read(self, path: str) -> bytes:
        """The bytes of a regular file of at most 64 MiB."""
        return await self._channel.read(path)

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file (parents are made); ResourceExhausted when the machine's disk is full."""
        await self._channel.write(path, data, mode)

    async def kill_all(self) -> None:
        """Kill every process of the sandbox but its supervisor."""
        await self._channel.kill_all()

    async def renew(self) -> None:
        """Begin the machine's life (Limits.episode_seconds) anew; also a sign that it is alive."""
        await self._channel.ping(self._limits.episode_seconds)

    async def wipe(self) -> None:
        """As before its tree was unpacked: nothing runs, nothing written is left, its life begins anew. Raises where that is not shown."""
        await self.kill_all()
        done = await self._channel.exec(("/bin/bash", "-c", WIPE), "/", ENVIRONMENT, b"", 60.0)
        if done.exit_code or done.output:
            raise SandboxError(f"{self.id}: cannot be wiped: {done.text[-300:].strip() or done.exit_code}")
        await self.renew()

    async def copy_from(self, source: "Machine") -> None:
        """All files of another machine into this one, which is new or wiped. What runs there is not copied, and may write meanwhile."""
        sent = await source._channel.pour(("/bin/bash", "-c", COPY), "/", ENVIRONMENT, 120.0, self._channel)
        done = await self._channel.exec(("/bin/bash", "-c", PASTE), "/", ENVIRONMENT, b"", 120.0)
        if sent.exit_code or done.exit_code:
            raise SandboxError(f"{source.id} could not be copied ({sent.exit_code}, {done.exit_code}): {done.text[-300:].strip()}")

    async def close(self) -> None:
        """Tear the machine down, even when the caller is cancelled; safe to call twice."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._tear_down())
        await asyncio.shield(self._closing)

    def when_closed(self, tell: Callable[[], None]) -> None:
        """Call something once this machine is torn down."""
        self._when_closed.append(tell)

    async def _tear_down(self) -> None:
        try:
            await self._remove()
        finally:
            for tell in self._when_closed:
                tell()
