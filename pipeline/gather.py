"""Many coroutines at once, and one exception for all; knows nothing of what they do."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TypeVar

T = TypeVar("T")


async def gather(work: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All results in order. The first exception cancels the rest, waits until they are torn down, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [one.result() for one in running]
