"""The exec channel's own side: deadlines, broken and silent supervisors, stale replies; on wires made of queues."""

import asyncio
import errno
import struct

import pytest

from sandbox import Limits, ResourceExhausted, SandboxError
from sandbox import channel as channel_module
from sandbox.channel import Channel, check, encode, file_name

LIMITS = Limits(output_bytes=100)


class QueueWire:
    """What the test puts into `replies` is read; what the channel sends lies in `sent`."""

    def __init__(self) -> None:
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: list[bytes] = []

    async def read(self) -> bytes:
        return await self.replies.get()

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def answer(self, number: int, error: int = 0, body: bytes = b"") -> None:
        self.replies.put_nowait(struct.pack("<III", 8 + len(body), number, error) + body)

    @property
    def ops(self) -> bytes:
        return b"".join(frame[8:9] for frame in self.sent)


def make_channel(wire: QueueWire, error: type[Exception] = SandboxError) -> tuple[Channel, list[str]]:
    seen: list[str] = []

    async def explain(what: str) -> Exception:
        seen.append(what)
        return error(what)

    return Channel(wire, explain, LIMITS), seen


def result(code: int = 0, flags: int = 0, dropped: int = 0, output: bytes = b"") -> bytes:
    return struct.pack("<IIQQ", code, flags, 1500, dropped) + output


async def run(channel: Channel, stdin: bytes = b"", seconds: float = 1.0):
    return await channel.exec(("/bin/bash", "-c", "true"), "/", {"A": "b"}, stdin, seconds)


async def test_a_reply_becomes_a_result():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    wire.answer(1, body=result(7, 3, 0, b"out"))
    found = await run(channel)
    assert (found.exit_code, found.output, found.timed_out, found.out_of_memory, found.seconds) == (7, b"out", True, True, 0.0015)


async def test_a_reply_in_single_bytes_is_put_together():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    for byte in struct.pack("<III", 8 + 24 + 3, 1, 0) + result(output=b"out"):
        wire.replies.put_nowait(bytes([byte]))
    assert (await run(channel)).output == b"out"


async def test_what_was_left_out_is_marked_in_the_middle():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    wire.answer(1, body=result(dropped=5, output=b"a" * 50 + b"b" * 50))
    found = await run(channel)
    assert found.output == b"a" * 50 + b"\n[... 5 bytes left out ...]\n" + b"b" * 50 and found.dropped_bytes == 5


async def test_a_silent_supervisor_is_explained_once_and_the_channel_stays_broken(monkeypatch):
    monkeypatch.setattr(channel_module, "GRACE", 0.05)
    wire = QueueWire()
    channel, seen = make_channel(wire)
    for _ in range(3):
        with pytest.raises(SandboxError, match="no reply"):
            await run(channel, seconds=0.05)
    assert len(seen) == 1 and wire.ops == b"X"


async def test_a_closed_stream_is_explained_by_evidence():
    wire = QueueWire()
    channel, seen = make_channel(wire, ResourceExhausted)
    wire.replies.put_nowait(b"\x01")
    wire.replies.put_nowait(b"")
    with pytest.raises(ResourceExhausted):
        await channel.ping()
    with pytest.raises(ResourceExhausted):
        await channel.read("/x")
    assert len(seen) == 1


async def test_a_cancelled_command_is_killed_and_its_reply_is_nobodys():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    task = asyncio.create_task(run(channel))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wire.ops == b"XK"
    wire.answer(1, body=result(137, 4, 0, b"wrong"))
    wire.answer(2)
    wire.answer(3, body=result(0, 0, 0, b"right"))
    assert (await run(channel)).output == b"right"


async def test_a_kill_that_is_not_confirmed_breaks_the_channel():
    for op in ("run", "kill_all"):
        wire = QueueWire()
        channel, seen = make_channel(wire)
        wire.answer(1, *((0, result(124, 9)) if op == "run" else (16, b"")))
        with pytest.raises(SandboxError, match="not confirmed"):
            await (run(channel) if op == "run" else channel.kill_all())
        assert len(seen) == 1


async def test_large_files_and_inputs_go_in_pieces():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    for number in range(1, 4):
        wire.answer(number)
    await channel.write("/f", b"x" * (2 * channel_module.CHUNK + 1), 0o644)
    assert [len(frame) for frame in wire.sent] == [9 + 12 + 3 + size for size in (channel_module.CHUNK, channel_module.CHUNK, 1)]
    for number in range(4, 6):
        wire.answer(number)
    wire.answer(6, body=result())
    await run(channel, stdin=b"x" * (channel_module.CHUNK + 1))
    assert wire.ops == b"WWWIIX"


async def test_a_file_too_large_for_the_host_is_not_read():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    wire.answer(1, body=struct.pack("<Q", 1 << 40) + b"x")
    with pytest.raises(PermissionError, match="64 MiB"):
        await channel.read("/f")


async def test_a_file_that_grows_or_shrinks_while_it_is_read_ends():
    wire = QueueWire()
    channel, _ = make_channel(wire)
    wire.answer(1, body=struct.pack("<Q", 10) + b"xxx")
    wire.answer(2, body=struct.pack("<Q", 3))
    assert await channel.read("/f") == b"xxx"


@pytest.mark.parametrize(
    ("raised", "errors"),
    [
        (FileNotFoundError, (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)),
        (IsADirectoryError, (errno.EISDIR,)),
        (PermissionError, (errno.EACCES, errno.EROFS, errno.ELOOP, errno.ENXIO, errno.EIO)),
        (ResourceExhausted, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EAGAIN, errno.EMFILE)),
    ],
)
def test_an_error_number_from_inside_has_one_meaning(raised, errors):
    for error in errors:
        with pytest.raises(raised, match="/f"):
            check(error, "/f")


def test_text_of_any_kind_can_be_sent():
    assert encode("gr\xfcn\udcff") == b"gr\xc3\xbcn\xff" and encode("\ud800") == b"?"
    with pytest.raises(FileNotFoundError):
        file_name("a\0b")
