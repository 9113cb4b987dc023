"""Several engines as one policy: each task's episodes go to one of them, new weights go to all; knows engines by the policy's face.

Siblings of a group share the beginnings of their prompts, and an engine's prefix cache is its own: so a group stays where it began.
Groups are dealt in turn, not by load: those of a step ahead are all dealt at one moment, when the load says nothing about them yet.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np

from tasks import Task

from .config import Config
from .gather import gather
from .policy import VllmPolicy, start_policy
from .prompt import Template
from .types import Completion, PolicyError
from .weights import Digests, describe_difference


class Engines:
    """The Policy of types.py over one or more servers with the same weights; called with a task, the server for one group of episodes."""

    def __init__(self, members: Sequence[VllmPolicy]) -> None:
        self.members = tuple(members)
        self._dealt = 0

    def __call__(self, task: Task) -> VllmPolicy:
        """The next in turn."""
        self._dealt += 1
        return self.members[(self._dealt - 1) % len(self.members)]

    @property
    def version(self) -> int:
        """Of the weights of all."""
        return min(member.version for member in self.members)

    @version.setter
    def version(self, version: int) -> None:
        for member in self.members:
            member.version = version

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """By the first: those who sample much ask for a member of their own."""
        return await self.members[0].sample(prompt, max_tokens, seed)

    async def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """By the first: the digests say that the others hold the same weights."""
        return await self.members[0].logprobs(ids)

    async def load(self, folder: Path, version: int) -> Digests:
        """All at once; PolicyError where two hold different weights afterwards."""
        first, *others = await gather([member.load(folder, version) for member in self.members])
        for place, held in enumerate(others, start=1):
            if difference := describe_difference(first, held):
                raise PolicyError(f"engines 0 and {place} hold different weights of version {version}: {difference}")
        return first

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """All of them, within."""
        async with AsyncExitStack() as stack:
            for member in self.members:
                await stack.enter_async_context(member.asleep())
            yield

    async def close(self) -> None:
        """Stop those that are ours."""
        await asyncio.gather(*(member.close() for member in self.members))


async def start_engines(config: Config, template: Template, log: Path) -> Engines | VllmPolicy:
    """policy.engines servers on this machine as one policy, checked, at version 0; of one, the server itself."""
    if config.policy.engines == 1:
        return await start_policy(config, template, log)
    started: list[VllmPolicy] = []
    try:
        for place in range(config.policy.engines):  # one after the other: each would take the other's memory for its own
            started.append(await start_policy(config, template, log.with_stem(f"{log.stem}-{place}"), place))
    except BaseException:
        await Engines(started).close()
        raise
    return Engines(started)
