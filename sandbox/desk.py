"""A folder of ours in a machine in which something is to be shown, and the commands for that; knows nothing of what it is."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .base import Sandbox, SandboxError
from .repo import GIT_PATH, QUIET

SECONDS = 300.0


class SealError(SandboxError):
    """The answer is within reach, or it could not be shown that it is not: nothing may be attempted there. Trying again does not help."""


@dataclass(frozen=True, slots=True)
class Desk:
    """The machine and the folder."""

    sandbox: Sandbox
    here: str

    async def run(self, script: str, what: str, **variables: str) -> None:
        """Run a bash script in WORKDIR, git without any configuration but the repository's; SealError with its last words if it fails."""
        env = {**QUIET, "GIT_NO_REPLACE_OBJECTS": "1", "PATH": GIT_PATH, "HERE": self.here, **variables}
        done = await self.sandbox.run(f"set -euo pipefail; {script}", env=env, seconds=SECONDS)
        if done.exit_code:
            raise SealError(f"{what} (exit {done.exit_code}): {done.text[-300:].strip()}")

    async def read(self, name: str) -> bytes:
        """A file of the folder."""
        return await read(self.sandbox, f"{self.here}/{name}")

    async def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder."""
        await self.sandbox.write(f"{self.here}/{name}", data)


@asynccontextmanager
async def open_desk(sandbox: Sandbox) -> AsyncIterator[Desk]:
    """A folder that nobody else uses, gone at the end: what lies in it is the answer."""
    desk = Desk(sandbox, f"/tmp/.greengrad-{secrets.token_hex(8)}")
    try:
        await desk.run('mkdir -m 700 "$HERE"', "no folder can be made")
        yield desk
    finally:
        await sandbox.run(f"rm -rf {desk.here}", cwd="/")


async def read(sandbox: Sandbox, path: str) -> bytes:
    """A file of a machine; SealError where it cannot be read."""
    try:
        return await sandbox.read(path)
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}") from error
