"""The persistent exec channel into a sandbox: frames to and from the supervisor; knows nothing of Docker, bubblewrap or images.

covered:     every reply has a deadline of its own on this side (the command's limit and a grace); a channel that breaks or stays
             silent is explained by its backend from evidence (SandboxError or ResourceExhausted) and stays broken; a cancelled
             caller leaves no command running inside and no reply that a later caller could take for its own.
not covered: two commands at once (they queue). The frames are described in supervisor.c.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from errno import EACCES, EAGAIN, EDQUOT, EFBIG, EINPROGRESS, EISDIR, EMFILE, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC, ENOTDIR
from os import strerror
from typing import Protocol

from .base import ExecResult, Limits, ResourceExhausted, SandboxError

CHUNK = 1 << 20
"""Bytes of a file in one frame, and the longest command."""
AHEAD = 8
"""Pieces of stdin on their way at one time."""
WORDS = 4000
"""Arguments and environment variables of one command."""
FILE_BYTES = 64 << 20
"""A larger file is not read into the host's memory."""
OUTPUT_BYTES = 8 << 20
"""What the supervisor can keep of one command's output."""
GRACE = 15.0
"""Seconds that a reply may take beyond the command's own time limit: the kill, a throttled cpu, a busy host."""

_HEADER = struct.Struct("<III")
_RESULT = struct.Struct("<IIQQ")
_TIMED_OUT, _OUT_OF_MEMORY, _UNCONFIRMED = 1, 2, 8


class Wire(Protocol):
    """A byte stream to and from the supervisor."""

    async def read(self) -> bytes:
        """The next bytes; b"" once the other side is gone."""
        ...

    def send(self, data: bytes) -> None:
        """Queue the bytes, all or none."""
        ...

    async def drain(self) -> None:
        """Wait until there is room for more."""
        ...


class Channel:
    """Requests and replies over a wire. `explain` turns "what we saw" into the exception to raise, by evidence."""

    def __init__(self, wire: Wire, explain: Callable[[str], Awaitable[Exception]], limits: Limits) -> None:
        if not 2 <= limits.output_bytes <= OUTPUT_BYTES:
            raise ValueError(f"output_bytes {limits.output_bytes}: between 2 and {OUTPUT_BYTES}")
        self._wire, self._explain, self._limits = wire, explain, limits
        self._turn = asyncio.Lock()
        self._received = bytearray()
        self._last_id = 0
        self._fed: deque[int] = deque()
        """Ids of pieces of stdin whose replies have not been read."""
        self._failure: Exception | None = None

    async def exec(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], stdin: bytes, seconds: float) -> ExecResult:
        """Run one command to its end or its time limit."""
        request = command_frame(argv, cwd, env, seconds, self._limits.output_bytes)
        if request is None:
            return ExecResult(b"sandbox: a command with its environment is at most 1 MiB and holds no NUL byte\n", 126, 0.0)
        async with self._turn:
            await self._feed(stdin)
            error, body = await self._ask(b"X", request, seconds)
            check(error, "command")
            return await self._result(body)

    async def pour(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], seconds: float, other: "Channel") -> ExecResult:
        """Run one command whose whole output becomes the stdin of the next command of another channel; the result has none."""
        request = command_frame(argv, cwd, env, seconds, 0)
        assert request
        async with self._turn, other._turn:
            error, body = await self._ask(b"X", request, seconds, other._feed)
            check(error, "command")
            return await self._result(body)

    async def _feed(self, stdin: bytes) -> None:
        """Append to the next command's stdin, a few pieces ahead of their replies."""
        for start in range(0, len(stdin), CHUNK):
            async with self._explained(0.0):
                self._send(b"I", stdin[start : start + CHUNK])
                self._fed.append(self._last_id)
                await self._wire.drain()
                await self._acknowledge(AHEAD)

    async def _acknowledge(self, ahead: int) -> None:
        while len(self._fed) > ahead:
            error, _ = await self._reply(self._fed.popleft())
            if error:
                raise ResourceExhausted(f"stdin: {strerror(error)}")

    async def read(self, path: str) -> bytes:
        """The bytes of a regular file."""
        data = bytearray()
        async with self._turn:
            while True:
                error, body = await self._ask(b"R", struct.pack("<QI", len(data), CHUNK) + file_name(path))
                check(error, path)
                (size,) = struct.unpack_from("<Q", body)
                if size > FILE_BYTES:
                    raise PermissionError(EACCES, f"larger than {FILE_BYTES >> 20} MiB, not read", path)
                data += body[8:]
                if len(body) == 8 or len(data) >= size:
                    return bytes(data)

    async def write(self, path: str, data: bytes, mode: int) -> None:
        """Write a file; parents are made."""
        async with self._turn:
            for start in range(0, len(data) or 1, CHUNK):
                request = struct.pack("<QI", start, mode) + file_name(path) + data[start : start + CHUNK]
                error, _ = await self._ask(b"W", request)
                check(error, path)

    async def kill_all(self) -> None:
        """Kill everything inside but the supervisor; SandboxError where that is not confirmed."""
        async with self._turn:
            error, _ = await self._ask(b"K", b"")
            if error:
                raise await self._fail("a kill was not confirmed")

    async def ping(self, life_seconds: float = 0.0) -> None:
        """A sign of life; with `life_seconds` the machine's life begins anew."""
        async with self._turn:
            await self._ask(b"P", struct.pack("<I", int(life_seconds)))

    async def _ask(
        self, op: bytes, body: bytes, seconds: float = 0.0, take: Callable[[bytes], Awaitable[None]] | None = None
    ) -> tuple[int, bytes]:
        """One request and its last reply: errno and body; the replies before it go to `take`."""
        async with self._explained(seconds):
            await self._acknowledge(0)
            self._send(op, body)
            number = self._last_id
            await self._wire.drain()
            while (reply := await self._reply(number))[0] == EINPROGRESS and take:
                await take(reply[1])
            return reply

    @asynccontextmanager
    async def _explained(self, seconds: float) -> AsyncIterator[None]:
        """A bound on what is waited for, and the backend's word on a channel that broke."""
        if self._failure:
            raise self._failure
        try:
            async with asyncio.timeout(seconds + GRACE):
                yield
        except TimeoutError:
            raise await self._fail(f"no reply {GRACE:.0f} s after the time limit") from None
        except (OSError, EOFError) as error:
            raise await self._fail(f"the channel broke: {error}") from error
        except (asyncio.CancelledError, SandboxError, ResourceExhausted):  # the caller has gone, or what took the output has failed
            self._fed.clear()
            self._send(b"K", b"")  # what runs inside ends now, and what was fed is forgotten; nobody waits for the replies
            raise

    def _send(self, op: bytes, body: bytes) -> None:
        self._last_id += 1
        self._wire.send(struct.pack("<II", 5 + len(body), self._last_id) + op + body)

    async def _reply(self, number: int) -> tuple[int, bytes]:
        while True:
            await self._receive(_HEADER.size)
            size, answered, error = _HEADER.unpack_from(self._received)
            await self._receive(4 + size)
            body = bytes(memoryview(self._received)[_HEADER.size : 4 + size])
            del self._received[: 4 + size]
            if answered == number:
                return error, body

    async def _receive(self, size: int) -> None:
        while len(self._received) < size:
            piece = await self._wire.read()
            if not piece:
                raise EOFError("end of stream")
            self._received += piece

    async def _result(self, body: bytes) -> ExecResult:
        code, flags, micros, dropped = _RESULT.unpack_from(body)
        if flags & _UNCONFIRMED:
            raise await self._fail("a kill was not confirmed")
        output = body[_RESULT.size :]
        if dropped:
            half = self._limits.output_bytes // 2
            output = output[:half] + b"\n[... %d bytes left out ...]\n" % dropped + output[half:]
        return ExecResult(output, code, micros / 1e6, bool(flags & _TIMED_OUT), bool(flags & _OUT_OF_MEMORY), dropped)

    async def _fail(self, seen: str) -> Exception:
        self._failure = await self._explain(seen)
        return self._failure


def command_frame(argv: Sequence[str], cwd: str, env: Mapping[str, str], seconds: float, cap: int) -> bytes | None:
    """The body of an 'X' frame; None for a command that is too long or holds a NUL byte."""
    words = [encode(word) for word in (cwd, *argv, *(f"{name}={value}" for name, value in env.items()))]
    strings = b"".join(word + b"\0" for word in words)
    if len(strings) > CHUNK or len(words) > WORDS or any(b"\0" in word for word in words):
        return None
    return struct.pack("<IIHH", max(1, int(seconds * 1000)), cap, len(argv), len(env)) + strings


def encode(text: str) -> bytes:
    """UTF-8; bytes that came in through surrogateescape go out as they were, other lone surrogates become '?'."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def file_name(path: str) -> bytes:
    """A path as the supervisor reads it. A NUL byte cannot be part of one, so no such file exists."""
    if "\0" in path or len(path) > 4096:
        raise FileNotFoundError(ENOENT, strerror(ENOENT), path)
    return encode(path) + b"\0"


def check(error: int, what: str) -> None:
    """Raise what an errno from inside means: three kinds of OSError for a path that will not do, ResourceExhausted for a full machine."""
    if error in (ENOENT, ENOTDIR, ENAMETOOLONG):
        raise FileNotFoundError(ENOENT, strerror(error), what)
    if error == EISDIR:
        raise IsADirectoryError(error, strerror(error), what)
    if error in (ENOSPC, EDQUOT, EFBIG, ENOMEM, EAGAIN, EMFILE):
        raise ResourceExhausted(f"{what}: {strerror(error)}")
    if error:
        raise PermissionError(EACCES, strerror(error), what)
