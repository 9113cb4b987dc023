"""The first answer of an episode, sampled while its machine is made ready; knows neither machines nor episodes."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import cached_property
from types import TracebackType
from typing import Any

from .types import Completion

Answer = tuple[Completion, float]
"""A completion and the seconds that it took."""


class Opening:
    """Use it as `async with`: an answer that is not needed is cancelled."""

    def __init__(self, start: Callable[[], list[int]], sample: Callable[[list[int]], Coroutine[Any, Any, Answer]], context: int) -> None:
        self._start, self._sample, self._context = start, sample, context
        self._begun: asyncio.Task[Answer] | None = None

    @cached_property
    def prompt(self) -> list[int]:
        """That of the first turn."""
        return self._start()

    def begin(self) -> None:
        """There is room for the machine: an episode that still waits for that samples nothing."""
        if len(self.prompt) < self._context:
            self._begun = asyncio.create_task(self._sample(self.prompt))

    async def answer(self) -> Answer:
        """What was begun, or a new one; what the engine raised is raised here."""
        return await (self._begun or self._sample(self.prompt))

    async def __aenter__(self) -> "Opening":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._begun is not None:
            self._begun.cancel()
            await asyncio.gather(self._begun, return_exceptions=True)  # raised by answer(), or the machine failed before it
