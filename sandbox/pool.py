"""Machines for many episodes at once: a bound on how many are leased, some ready ahead, the used ones wiped; knows no tasks or backends."""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from .base import Backend, Image, Limits, ResourceExhausted, Sandbox, SandboxError
from .repo import unpack

log = logging.getLogger(__name__)
KINDS = 4
"""Environments for which machines are kept ahead: those last asked for."""
Kind = tuple[Image, Limits]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A machine that waits to be handed out, or the start of one."""

    task: asyncio.Task[Sandbox]
    tree: Path | None
    """What lies in its WORKDIR."""
    born: float
    since: float
    """When its life (Limits.episode_seconds) began, by the monotonic clock."""
    served: int = 0
    """Leases so far."""


class Pool:
    """Hands out machines that are as new, and tears them down. Use it as `async with Pool(...) as pool`.

    At most `concurrency` are leased at once; up to `ahead` more for each environment (image name and limits) are made ready
    beforehand, with the tree that was asked for last, because siblings of a group come one after the other.
    A machine serves `reuse` leases: in between everything in it is killed and wiped, and one that cannot be shown to be
    empty, or whose lease ended in an exception, is torn down. With reuse 1, the default, each serves once.
    """

    def __init__(self, backend: Backend, limits: Limits, concurrency: int, ahead: int = 0, reuse: int = 1) -> None:
        self._backend, self._limits = backend, limits
        self._concurrency, self._most, self._reuse = concurrency, ahead, reuse
        self._room = asyncio.Semaphore(concurrency)
        self._ready: OrderedDict[Kind, list[_Ready]] = OrderedDict()
        self._alive: Counter[Kind] = Counter()
        self._work: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> "Pool":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @asynccontextmanager
    async def lease(
        self, image: Image, limits: Limits | None = None, like: Sandbox | None = None, begun: Callable[[], None] | None = None
    ) -> AsyncIterator[Sandbox]:
        """A machine as new for the length of the block; then it is wiped or torn down, whatever happened, cancellation included.

        `like`: a machine of this image whose files it gets instead of the tree: a fork, independent from then on.
        `begun`: called once there is room, while the machine is made ready: what does not need it can go on meanwhile.
        """
        kind = (replace(image, tree=None), limits or self._limits)
        await self._room.acquire()
        machine, unharmed = self._take(kind, image), False
        try:
            if begun is not None:
                begun()
            sandbox = await asyncio.shield(machine.task)
            if like is not None:
                await sandbox.wipe()
                await sandbox.copy_from(like)
            yield sandbox
            unharmed = True
        finally:
            self._start(self._finish(kind, machine, unharmed))

    async def close(self) -> None:
        """Tear down what waits, and wait for every teardown."""
        self._closed = True
        for kind in list(self._ready):
            self._forget(kind)
        while self._work:
            await asyncio.wait(self._work)

    def _take(self, kind: Kind, image: Image) -> _Ready:
        """The best machine that waits, or a new one; what is missing ahead is started behind it."""
        waiting = self._ready.setdefault(kind, [])
        self._ready.move_to_end(kind)
        for old in [one for one in waiting if one.since + kind[1].episode_seconds / 4 < time.monotonic()]:
            waiting.remove(old)  # too much of its life is over
            self._start(self._end(kind, old))
        found = next((one for one in waiting if one.tree == image.tree), waiting[0] if waiting else None)
        if found is None:
            found = self._new(kind, image)
        else:
            waiting.remove(found)
        while len(waiting) < self._most and self._alive[kind] < self._concurrency + self._most:
            waiting.append(self._new(kind, image))
        while len(self._ready) > KINDS:
            self._forget(next(iter(self._ready)))
        if found.tree == image.tree:
            return found
        return replace(found, task=_background(self._other_tree(kind, found.task, image)), tree=image.tree)

    async def _other_tree(self, kind: Kind, machine: asyncio.Task[Sandbox], image: Image) -> Sandbox:
        """A machine that was made ready for another tree, with this one; a new one where that other tree went away while it started."""
        try:
            await machine
        except FileNotFoundError:
            return await self._backend.start(image, kind[1])
        return await _exchange(machine, image)

    def _new(self, kind: Kind, image: Image) -> _Ready:
        self._alive[kind] += 1
        now = time.monotonic()
        return _Ready(_background(self._backend.start(image, kind[1])), image.tree, born=now, since=now)

    async def _finish(self, kind: Kind, machine: _Ready, unharmed: bool) -> None:
        """After a lease, in the background; its place is free once the machine is ready again or gone."""
        try:
            if unharmed and self._may_serve_again(kind, machine):
                await self._recycle(kind, machine)
            else:
                await self._end(kind, machine)
        finally:
            self._room.release()

    def _may_serve_again(self, kind: Kind, machine: _Ready) -> bool:
        """Whether it is worth wiping: not for an image without a tree, whose files could not be put back."""
        young = time.monotonic() < machine.born + kind[1].episode_seconds
        return not self._closed and young and machine.tree is not None and machine.served + 1 < self._reuse

    async def _recycle(self, kind: Kind, machine: _Ready) -> None:
        """Wipe a machine, put the same tree into it and let it wait; tear it down where that does not work or there are enough."""
        tree = machine.tree if machine.tree and machine.tree.exists() else None
        try:
            await _exchange(machine.task, replace(kind[0], tree=tree))
        except (SandboxError, ResourceExhausted, FileNotFoundError) as error:
            log.debug("not used again: %s", error)
            await self._end(kind, machine)
            return
        waiting = self._ready.get(kind)
        crowded = self._alive.total() > self._concurrency + KINDS * self._most
        if self._closed or waiting is None or crowded:
            await self._end(kind, machine)
        else:
            waiting.append(replace(machine, tree=tree, since=time.monotonic(), served=machine.served + 1))

    def _forget(self, kind: Kind) -> None:
        """Tear down what waits for this kind; a start under way is broken off, as it may hang on a daemon that answers nothing."""
        for machine in self._ready.pop(kind):
            machine.task.cancel()
            self._start(self._end(kind, machine))

    async def _end(self, kind: Kind, machine: _Ready) -> None:
        """Tear a machine down once its start is over."""
        await asyncio.wait([machine.task])
        self._alive[kind] -= 1
        if not machine.task.cancelled() and machine.task.exception() is None:
            await machine.task.result().close()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something that the pool waits for when it is closed."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


def _background(work: Coroutine[Any, Any, Sandbox]) -> asyncio.Task[Sandbox]:
    return asyncio.ensure_future(work)


async def _exchange(machine: asyncio.Task[Sandbox], image: Image) -> Sandbox:
    """The machine, wiped, with another tree. Where that fails it is closed: the caller's own teardown finds only the error."""
    sandbox = await machine
    try:
        await sandbox.wipe()
        await unpack(sandbox, image)
    except BaseException:
        await asyncio.shield(sandbox.close())
        raise
    return sandbox
