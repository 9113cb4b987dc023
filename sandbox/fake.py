"""Sandboxes that need no machine: scripted replies, one that hangs, one that dies; shipped, so that users can test too."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

from .base import WORKDIR, ExecResult, Image, Limits, Sandbox, SandboxError

Reply = bytes | ExecResult | Exception


class FakeSandbox:
    """Files in a dict, and replies to commands by the first script line whose text occurs in the command; others print nothing."""

    def __init__(self, replies: dict[str, Reply] | None = None, files: dict[str, bytes] | None = None) -> None:
        self.id = "fake"
        self.replies, self.files = replies or {}, files or {}
        self.commands: list[str] = []
        self.closed = False

    async def run(
        self, command: str, *, cwd: str = WORKDIR, env: dict[str, str] | None = None, stdin: bytes = b"", seconds: float | None = None
    ) -> ExecResult:
        """The scripted reply; a scripted exception is raised."""
        self._alive()
        self.commands.append(command)
        reply = next((reply for text, reply in self.replies.items() if text in command), b"")
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, ExecResult) else ExecResult(reply, 0, 0.0)

    async def read(self, path: str) -> bytes:
        """The bytes of a file that was given or written."""
        self._alive()
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Keep the bytes."""
        self._alive()
        self.files[path] = data

    async def kill_all(self) -> None:
        """Nothing runs."""
        self._alive()

    async def wipe(self) -> None:
        """Forget the files."""
        self._alive()
        self.files.clear()

    async def copy_from(self, source: Self) -> None:
        """The same files."""
        self._alive()
        self.files = dict(source.files)

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _alive(self) -> None:
        if self.closed:
            raise SandboxError("fake: used after close")


class HangingSandbox(FakeSandbox):
    """Its commands never end; what calls it must have a time limit of its own."""

    async def run(
        self, command: str, *, cwd: str = WORKDIR, env: dict[str, str] | None = None, stdin: bytes = b"", seconds: float | None = None
    ) -> ExecResult:
        """Wait for ever."""
        self.commands.append(command)
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets was set")


class DyingSandbox(FakeSandbox):
    """Works for some commands, then the machine fails for good."""

    def __init__(self, commands_left: int = 1, error: Exception | None = None, replies: dict[str, Reply] | None = None) -> None:
        super().__init__(replies)
        self._left, self._error = commands_left, error or SandboxError("fake: the machine is gone")

    def _alive(self) -> None:
        super()._alive()
        if self._left <= 0:
            raise self._error
        self._left -= 1


class FakeBackend:
    """Starts fakes; keeps them, so that a test can look at what was done with them."""

    name = "fake"

    def __init__(self, make: Callable[[], FakeSandbox] = FakeSandbox) -> None:
        self._make = make
        self.started: list[FakeSandbox] = []

    async def prepare(self, image_name: str) -> str:
        """Nothing to make."""
        return image_name

    async def own_tree(self, image: Image) -> Path:
        """No fake holds a repository."""
        raise SandboxError(f"{image.name}: a fake image holds no repository")

    async def start(self, image: Image, limits: Limits) -> Sandbox:
        """A new fake."""
        self.started.append(self._make())
        return self.started[-1]

    async def sweep(self) -> int:
        """Fakes leave nothing."""
        return 0
