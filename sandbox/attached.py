"""The attached stream of a container as a Wire; knows Docker's framing of it, nothing of the daemon's API or of the supervisor."""

import asyncio
import os
import socket
from asyncio import StreamReader, StreamWriter
from typing import Any

from .channel import CHUNK


class Attached:
    """The attached stream of a container as a Wire: stdout without Docker's 8-byte headers; what comes on stderr is kept aside."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._rest = b""
        """The beginning of a header whose end has not come yet."""
        self._left, self._stderr = 0, False
        self.words = b""
        """The end of what came on stderr."""

    async def read(self) -> bytes:
        """The next bytes of stdout; b"" at the end."""
        while data := await self._reader.read(CHUNK):
            if out := self._without_headers(self._rest + data if self._rest else data):
                return out
        return b""

    def _without_headers(self, data: bytes) -> bytes:
        """The stdout in a piece of the stream; large pieces are cut, because each wait costs more than a copy."""
        at, out, self._rest = 0, [], b""
        while at < len(data):
            if self._left == 0:
                if len(data) - at < 8:
                    self._rest = data[at:]
                    break
                self._stderr, self._left = data[at] == 2, int.from_bytes(data[at + 4 : at + 8], "big")
                at += 8
            piece = data[at : at + self._left]
            at, self._left = at + len(piece), self._left - len(piece)
            if self._stderr:
                self.words = (self.words + b" " + piece)[-1000:]
            else:
                out.append(piece)
        return b"".join(out)

    def send(self, data: bytes) -> None:
        """Queue the bytes for stdin."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._writer.drain()

    def close(self) -> None:
        """Hang up; the daemon then closes the container's stdin."""
        self._writer.close()


async def attach(response: Any) -> Attached:
    """Take the connection over from the SDK, whose own end of it is closed."""
    raw = socket.socket(fileno=os.dup(response.fileno()))
    raw.setblocking(False)
    response._response.close()
    response.close()
    reader, writer = await asyncio.open_connection(sock=raw, limit=2 * CHUNK)
    return Attached(reader, writer)
