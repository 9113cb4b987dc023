"""Machines for many episodes at once: a bound on how many are leased, and some started ahead; knows nothing of tasks or backends."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

from .base import Backend, Image, Limits, Sandbox
from .repo import unpack

KINDS = 4
"""Environments for which machines are kept ahead: those last asked for."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A machine that is being started, without a tree."""

    task: asyncio.Task[Sandbox]
    until: float
    """From then on too much of its life is over to hand it out."""


class Pool:
    """Hands out fresh machines; each serves once and is torn down. Use it as `async with Pool(...) as pool`.

    At most `concurrency` are leased at once. For each environment (image name and limits) up to `ahead` more are started beforehand;
    the tree is unpacked when one is handed out.
    """

    def __init__(self, backend: Backend, limits: Limits, concurrency: int, ahead: int = 0) -> None:
        self._backend, self._limits, self._most = backend, limits, ahead
        self._room = asyncio.Semaphore(concurrency)
        self._ahead: OrderedDict[tuple[str, Limits], deque[_Ahead]] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Pool":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @asynccontextmanager
    async def lease(self, image: Image, limits: Limits | None = None) -> AsyncIterator[Sandbox]:
        """A fresh machine for the length of the block; then it is torn down, whatever happened, cancellation included."""
        async with self._room:
            machine = self._start(image, limits or self._limits)
            try:
                yield await asyncio.shield(machine)
            finally:
                await asyncio.shield(self._end(machine))

    async def close(self) -> None:
        """Tear down what was started ahead, and wait for every teardown."""
        for kind in list(self._ahead):
            self._forget(kind)
        while self._ending:
            await asyncio.wait(self._ending)

    def _start(self, image: Image, limits: Limits) -> asyncio.Task[Sandbox]:
        if self._most == 0 or image.tree is None:
            return asyncio.ensure_future(self._backend.start(image, limits))
        kind = (image.name, limits)
        ready = self._ahead.setdefault(kind, deque())
        self._ahead.move_to_end(kind)
        while ready and ready[0].until < time.monotonic():
            self._end(ready.popleft().task)
        while len(ready) < self._most + 1:
            ready.append(_Ahead(asyncio.ensure_future(self._backend.start(Image(image.name), limits)), _sell_by(limits)))
        while len(self._ahead) > KINDS:
            self._forget(next(iter(self._ahead)))
        return asyncio.ensure_future(_with_tree(ready.popleft().task, image))

    def _forget(self, kind: tuple[str, Limits]) -> None:
        for entry in self._ahead.pop(kind):
            self._end(entry.task)

    def _end(self, machine: asyncio.Task[Sandbox]) -> asyncio.Task[None]:
        """Tear a machine down once its start is over; the pool keeps the teardown until it is done."""
        task = asyncio.ensure_future(_close(machine))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


def _sell_by(limits: Limits) -> float:
    return time.monotonic() + limits.episode_seconds / 4


async def _with_tree(machine: asyncio.Task[Sandbox], image: Image) -> Sandbox:
    async with AsyncExitStack() as undo:
        sandbox = await machine
        undo.push_async_callback(sandbox.close)
        await unpack(sandbox, image)
        undo.pop_all()
    return sandbox


async def _close(machine: asyncio.Task[Sandbox]) -> None:
    await asyncio.wait([machine])
    if not machine.cancelled() and machine.exception() is None:
        await machine.result().close()
