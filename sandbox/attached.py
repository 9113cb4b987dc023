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
        self._left, self._stderr = 0, False
        self.words = b""
        """The end of what came on stderr."""

    async def read(self) -> bytes:
        """The next bytes of stdout; b"" at the end."""
        try:
            while True:
                if self._left == 0:
                    header = await self._reader.readexactly(8)
                    self._left, self._stderr = int.from_bytes(header[4:], "big"), header[0] == 2
                piece = await self._reader.read(self._left)
                self._left -= len(piece)
                if not self._stderr or not piece:
                    return piece
                self.words = (self.words + b" " + piece)[-1000:]
        except EOFError:
            return b""

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
    reader, writer = await asyncio.open_connection(sock=raw, limit=2 * CHUNK)
    return Attached(reader, writer)
