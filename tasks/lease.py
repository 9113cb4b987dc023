"""A fresh machine for the length of a block, from a backend or a pool; knows no task."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandbox import Backend, Image, Limits, Pool, Sandbox

Machines = Backend | Pool


@asynccontextmanager
async def machine(machines: Machines, image: Image, limits: Limits) -> AsyncIterator[Sandbox]:
    """A fresh machine for the length of the block."""
    if isinstance(machines, Pool):
        async with machines.lease(image, limits) as sandbox:
            yield sandbox
        return
    sandbox = await machines.start(image, limits)
    try:
        yield sandbox
    finally:
        await sandbox.close()
