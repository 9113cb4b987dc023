"""The parts of a training run as Ray actors; knows no run, no placement, no loop.

Each has the face that it also has on one machine: learner ranks are a ranks.Crew, a vLLM server is an HTTP transport (it listens on its
node's loopback and is reached through its actor, so that no port with vLLM's development endpoints is open), a node that plays episodes
is a dispatch.Node. An actor ends with the owner's process, and what it has started ends with it.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tasks import Task

from .actor import Prepared, open_chat, prepare_machines
from .config import Config
from .dispatch import NodeLost
from .engine import Engine, engine_command, free_port, start_engine
from .engines import make_policy, open_client
from .node import Event, Order, RolloutNode
from .orders import Command, LearnerSetup
from .placement import Post, local_numbers
from .ranks import RankError, Spot, describe_death, write_to
from .types import EngineDied
from .world import open_rig

log = logging.getLogger(__name__)
MEETING_SECONDS = 60.0
"""Limit for the first rank's process to start and name a port."""
CALLS = 10_000
"""Requests and episodes that an actor carries at a time."""


def on_node(node_id: str, work: Any, **options: Any) -> Any:
    """A function or a class, to run on that node and nowhere else."""
    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(work).options(scheduling_strategy=pinned, num_cpus=0, **options)


def own_gpus(post: Post) -> dict[str, str]:
    """The environment of an actor that has these GPUs to itself; on a CPU nothing."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, post.gpus))} if post.gpus else {}


class RankHost:
    """One rank of the learner, in an actor."""

    def __init__(self, environment: dict[str, str], log_file: Path) -> None:
        write_to(log_file)
        os.environ |= environment
        self._shop: Any = None

    def find_meeting(self, address: str) -> str:
        """A port of this node that is free now, as torch.distributed's address of the meeting of all ranks."""
        with socket.socket() as probe:
            probe.bind((address, 0))
            return f"tcp://{address}:{probe.getsockname()[1]}"

    def start(self, spot: Spot, setup: LearnerSetup, address: str) -> str:
        """Open the workshop; why each sample has to be computed alone, or ""."""
        from .workshop import open_workshop

        self._shop = open_workshop(replace(spot, interface=_interface_of(address)), setup)
        return str(self._shop.why_alone)

    def obey(self, command: Command) -> Any:
        """Carry out one command."""
        from .rank import obey

        return obey(self._shop, command)


def _interface_of(address: str) -> str:
    """The network interface that has this address."""
    import psutil

    return next(str(name) for name, entries in psutil.net_if_addrs().items() if any(entry.address == address for entry in entries))


class ClusterRanks:
    """The Crew of ranks.py over actors."""

    def __init__(self, posts: Sequence[Post], setup: LearnerSetup) -> None:
        self._setup = setup
        setup.logs.mkdir(parents=True, exist_ok=True)
        self._logs = [(setup.logs / f"rank{rank}.log").absolute() for rank in range(len(posts))]
        self._actors = [
            on_node(post.node.node_id, RankHost).remote(own_gpus(post), file) for post, file in zip(posts, self._logs, strict=True)
        ]
        first = posts[0].node.address
        meeting = self._wait([self._actors[0].find_meeting.remote(first)], "find_meeting", MEETING_SECONDS)[0]
        numbers = local_numbers(posts)
        self._spots = [
            Spot(rank, len(posts), meeting, 0 if posts[rank].gpus else number, count) for rank, (number, count) in enumerate(numbers)
        ]
        self._starting = [
            actor.start.remote(spot, setup, post.node.address) for actor, spot, post in zip(self._actors, self._spots, posts, strict=True)
        ]

    def answers(self, question: str, seconds: float) -> list[Any]:
        """What `start` gave."""
        return self._wait(self._starting, question, seconds)

    def call(self, commands: Sequence[object], seconds: float) -> list[Any]:
        """One command to each rank, and all answers."""
        asked = [actor.obey.remote(command) for actor, command in zip(self._actors, commands, strict=True)]
        return self._wait(asked, type(commands[0]).__name__, seconds)

    def close(self) -> None:
        """Kill them: what matters they have written when they answered."""
        for actor in self._actors:
            ray.kill(actor)

    def _wait(self, asked: Sequence[Any], question: str, seconds: float) -> list[Any]:
        """All answers; RankError with the end of the log of the rank that died first, or after `seconds`."""
        deadline, open_ = time.monotonic() + seconds, list(asked)
        while open_:
            done, open_ = ray.wait(open_, timeout=max(deadline - time.monotonic(), 0.0))
            if not done:
                self.close()
                late = sorted(asked.index(one) for one in open_)
                raise RankError(f"no answer to {question} within {seconds:.0f} s from ranks {late}")
            try:
                ray.get(done)
            except RayError as failure:
                raise self._fail(asked, failure) from None
        return list(ray.get(list(asked)))

    def _fail(self, asked: Sequence[Any], first: RayError) -> RankError:
        """The ranks whose process is gone, else those with an exception: peers of a dead rank fail too, and are not the cause."""
        failures = {rank: failure for rank, one in enumerate(asked) if (failure := _failure_of(one)) is not None}
        dead = {rank: failure for rank, failure in failures.items() if isinstance(failure, RayActorError)} or failures
        self.close()
        told = [_describe(failure) for failure in dead.values()] or [str(first)]
        if not hasattr(self, "_spots"):
            return RankError(f"the learner did not start: {told[0]}")
        return RankError("\n".join(describe_death(self._spots[r], why, self._logs[r]) for r, why in zip(dead, told, strict=True)))


def _failure_of(asked: Any) -> RayError | None:
    """What a call has failed with by now (or within 2 s: a dead peer is noticed before it is known to be dead)."""
    try:
        ray.get(asked, timeout=2)
    except GetTimeoutError:
        return None
    except RayError as failure:
        return failure
    return None


def _describe(failure: RayError) -> str:
    return str(failure.cause) if isinstance(failure, RayTaskError) else " ".join(str(failure).split())[:300]


class EngineHost:
    """One vLLM server, in an actor; it dies with the actor."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ |= environment
        self._engine: Engine | None = None
        self._client: httpx.AsyncClient | None = None

    async def start(self, config: Config, log_file: Path) -> None:
        """Start it and wait until it answers; PolicyError when it does not."""
        assert config.model
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._engine = await start_engine(engine_command(config.model, config.policy, port, config.learner.lora), url, log_file)
        self._client = open_client(url)

    async def post(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """One request: status, content type and body of the answer. EngineDied where the server is gone."""
        assert self._engine and self._client
        if not self._engine.alive:
            raise EngineDied(f"the vLLM server has died; the end of {self._engine.log}:\n{self._engine.last_words()}")
        try:
            response = await self._client.post(path, content=body, headers={"content-type": "application/json"})
        except httpx.TransportError as failure:
            return 503, "text/plain", f"{type(failure).__name__}: {failure}".encode()
        return response.status_code, response.headers.get("content-type", ""), response.content

    async def stop(self) -> None:
        """End it."""
        if self._engine is not None:
            await self._engine.stop()


class ThroughActor(httpx.AsyncBaseTransport):
    """Requests to a server that only its actor reaches. A request that is given up is given up there too."""

    def __init__(self, host: Any) -> None:
        self._host = host

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """EngineDied when the server, its actor or its node is gone."""
        asked = self._host.post.remote(request.url.raw_path.decode(), await request.aread())
        try:
            status, kind, body = await asked
        except asyncio.CancelledError:
            ray.cancel(asked)
            raise
        except RayTaskError as failure:
            raise failure.cause from None
        except RayError as failure:
            raise EngineDied(f"an engine's node or actor is gone: {' '.join(str(failure).split())[:300]}") from None
        return httpx.Response(status, headers={"content-type": kind}, content=body, request=request)


class NodeActor(RolloutNode):
    """A RolloutNode in an actor, with a client for each engine."""

    def __init__(self, config: Config, hosts: Sequence[Any]) -> None:
        template = open_chat(config).template
        clients = [open_client("http://engine", ThroughActor(host)) for host in hosts]
        context = config.model.context if config.model else 0
        super().__init__(
            lambda: open_rig(config, config.rollout, open_chat(config), context),
            [make_policy(config, template, client) for client in clients],
        )
        self._config = config

    async def prepare(self, tasks: Sequence[Task]) -> Prepared:
        """Images and environments here, tasks sealed (actor.prepare_machines); then machines are ready to be leased."""
        prepared = await prepare_machines(self._config.sandbox, self._config.tasks.suite, tasks)
        await self.open()
        return prepared


class RemoteNode:
    """The Node of dispatch.py: an actor."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name, self._actor, self._killed = name, actor, False

    async def prepare(self, tasks: Sequence[Task]) -> Prepared:
        """See RolloutNode."""
        prepared: Prepared = await _asked(self._actor.prepare.remote(tasks))
        return prepared

    async def begin(self, order: Order) -> None:
        """See RolloutNode."""
        await _asked(self._actor.begin.remote(order))

    async def stop(self, ticket: int) -> None:
        """See RolloutNode."""
        await _asked(self._actor.stop.remote(ticket))

    async def take(self, kept: int, seconds: float) -> Sequence[Event]:
        """See RolloutNode."""
        events: Sequence[Event] = await _asked(self._actor.take.remote(kept, seconds))
        return events

    def kill(self) -> None:
        """Its machines are removed by its reaper."""
        self._killed = True
        ray.kill(self._actor)

    async def close(self, seconds: float = 60.0) -> None:
        """Tear its machines down; whatever does not end in time is killed."""
        if self._killed:
            return
        try:
            async with asyncio.timeout(seconds):
                await _asked(self._actor.close.remote())
        except (NodeLost, TimeoutError) as failure:
            log.warning("node %s did not close: %s", self.name, failure)
        self.kill()


async def _asked(asked: Any) -> Any:
    """The answer of a node; NodeLost when it is gone, its own exception otherwise."""
    try:
        return await asked
    except RayTaskError as failure:
        raise failure.cause from None
    except RayError as failure:
        raise NodeLost(" ".join(str(failure).split())[:300]) from None
