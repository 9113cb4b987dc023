"""A run that goes on by itself: what a lost rank, engine or node has ended, or a stall, is opened again; knows no parts of the world.

Nothing is carried over in memory: the journal says what is there, as after a kill (train.py), so that this adds no second way to resume.
Bounded by train.restarts in a row without a committed step: a failure that comes back each time is not one of the infrastructure.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from .config import Config
from .journal import Journal
from .ranks import RankError
from .train import World, train
from .types import EngineDied, NodesLost

log = logging.getLogger(__name__)
TEARDOWN_SECONDS = 120.0
"""Limit for what is cancelled after a stall to end by itself; closing the world ends the rest."""


class Stalled(Exception):
    """Nothing was recorded for train.stall_seconds."""


LOST = (RankError, EngineDied, NodesLost, Stalled)
"""What opening the world again may mend."""


async def train_through(config: Config, journal: Journal, open_world: Callable[[], AbstractAsyncContextManager[World]]) -> None:
    """Train to the last step, in as many worlds as that takes; the failure itself when there were too many in a row."""
    restarts = row = 0
    while journal.next_step < config.train.steps:
        first = journal.next_step
        try:
            async with open_world() as world:
                work = train(config, journal, replace(world, restarts=restarts))
                await watch(work, partial(last_record, journal.run), config.train.stall_seconds, journal.run / "logs")
        except LOST as failure:
            restarts, row = restarts + 1, 1 if journal.next_step > first else row + 1
            if row > config.train.restarts:
                raise
            log.warning("going on from step %d (restart %d of %d in a row): %s", journal.next_step, row, config.train.restarts, failure)


async def watch(work: Coroutine[Any, Any, None], pulse: Callable[[], float], seconds: float, logs: Path) -> None:
    """Do the work; Stalled, with a file that says who waits for whom, when the pulse stands still for so long."""
    task = asyncio.create_task(work, name="train")
    last, since = pulse(), time.monotonic()
    try:
        while not task.done():
            await asyncio.wait([task], timeout=min(seconds / 4, 10.0))
            if (now := pulse()) != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > seconds and not task.done():
                file = write_waits(logs)
                raise Stalled(f"nothing was recorded for {seconds:.0f} s (train.stall_seconds); {file} says who waits for whom")
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=TEARDOWN_SECONDS)
    task.result()


def last_record(run: Path) -> float:
    """When a journal of the run (its own, or that of an evaluation of held-out tasks) was written last."""
    return max((file.stat().st_mtime for file in [*run.glob("journal.sqlite*"), *run.glob("*/journal.sqlite*")]), default=0.0)


def write_waits(logs: Path) -> Path:
    """Each task of the event loop and each thread, by the calls that it is in; the file."""
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"stall-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    tasks = sorted(f"{task.get_name()}: {' > '.join(awaited(task.get_coro()))}" for task in asyncio.all_tasks())
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [f"thread {names.get(ident)}:\n{_stack(frame)}" for ident, frame in sys._current_frames().items()]
    file.write_text("\n".join([*tasks, "", *threads]) + "\n")
    return file


def awaited(coroutine: Any) -> Iterator[str]:
    """The chain of calls from a task's coroutine to what it waits for, outermost first."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            yield type(coroutine).__name__
            return
        yield f"{coroutine.__qualname__} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame))
