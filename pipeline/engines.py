"""Engines opened as a policy. Several are one policy: a group's episodes go to one of them, new weights go to all.

Siblings of a group share the beginnings of their prompts, and an engine's prefix cache is its own: so a group stays where it began.
Groups are dealt in turn, not by load: those of a step ahead are all dealt at one moment, when the load says nothing about them yet.
Knows engines by the policy's face. Left out: routing by what a cache holds, for prompts that share nothing but their task.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import numpy as np

from tasks import Task

from .config import Config
from .engine import Engine, engine_command, free_port, has_gpu, own_gpus, start_engine
from .gather import gather
from .policy import Sampling, VllmPolicy
from .prompt import Template
from .types import Completion, PolicyError
from .weights import Digests, describe_difference

REQUEST_SECONDS = 1800.0
"""One answer, waiting in the server's queue included."""


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

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """By the first: the digests say that the others hold the same weights."""
        return await self.members[0].logprobs(ids, wanted_T)

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


async def start_policy(config: Config, template: Template, log: Path, place: int = 0) -> VllmPolicy:
    """The policy of a configuration: a server of our own, or the one at policy.url; checked, at version 0.

    place: of the server among policy.engines on this machine: which GPUs are its own.
    """
    if config.model is None:
        raise ValueError("model.path is missing: a model policy needs one")
    if config.policy.transfer != "folder" and not has_gpu():
        raise ValueError(f"policy.transfer: {config.policy.transfer} needs GPUs; without one use folder, which is shared memory")
    port = free_port()
    url = config.policy.url or f"http://127.0.0.1:{port}"
    command = [*own_gpus(config.policy, place), *engine_command(config.model, config.policy, port, config.learner.lora)]
    engine = None if config.policy.url else await start_engine(command, url, log)
    policy = make_policy(config, template, open_client(url), engine)
    try:
        await policy.prepare()
    except BaseException:
        await policy.close()
        raise
    return policy


def open_client(url: str, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A connection to a server: as many requests at once as are made, each bounded by REQUEST_SECONDS."""
    timeout = httpx.Timeout(REQUEST_SECONDS, connect=10, pool=None)
    return httpx.AsyncClient(base_url=url, timeout=timeout, limits=httpx.Limits(max_connections=None), trust_env=False, transport=transport)


def make_policy(config: Config, template: Template, client: httpx.AsyncClient, engine: Engine | None = None) -> VllmPolicy:
    """The policy that a server serves, not yet checked."""
    options = config.policy
    return VllmPolicy(
        client,
        template,
        Sampling(config.rollout.temperature, template.stop_ids),
        engine,
        requests=options.max_requests,
        in_flight=options.in_flight,
        transfer=options.transfer,
    )


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
