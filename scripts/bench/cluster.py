#!/usr/bin/env python3
"""What the owner of a run spends on a turn that plays on another node, beside one that plays in its own process; no GPU, no container.

    python scripts/bench/cluster.py [--episodes N] [--at-once N] [--scale X] [--model FOLDER] [--json FILE]

The same scripted episodes as scripts/bench/rollout.py's `turns` (a policy and machines that sleep): once here, once on two nodes of a
local Ray cluster (one actor each, the turns told to the owner, who writes the journal). Processor time is that of the owner alone.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
import ray
from rollout import TURNS, Machines, Recorded, SleepingMachine, load_chat, make_task, open_rig

from pipeline.actors import CALLS, RemoteNode
from pipeline.config import RolloutConfig
from pipeline.dispatch import Dispatcher
from pipeline.evaluate import Actor, evaluate
from pipeline.journal import Journal
from pipeline.node import RolloutNode
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rig import Rig, remote_rig
from sandbox import Limits, Pool


class FakeNode(RolloutNode):
    """A node whose policy and machines sleep."""

    def __init__(self, model: Path | None, scale: float, room: int) -> None:
        logging.disable(logging.WARNING)
        chat, SleepingMachine.scale = _chat(model), scale

        @asynccontextmanager
        async def rig() -> AsyncIterator[Rig]:
            async with Pool(Machines(), Limits(), room) as pool:
                yield open_rig(chat, pool, _rollout())

        super().__init__(rig, [Recorded(chat, scale, fixed=True)])


def _rollout() -> RolloutConfig:
    return RolloutConfig(max_turns=TURNS, max_new_tokens=4096)


def _chat(model: Path | None) -> Chat:
    return load_chat(model) if model else Chat(ByteTemplate())


async def play(rig: Rig, policy: Recorded, count: int) -> dict[str, float]:
    """Milliseconds of this process per turn, and turns a second."""
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        began, spent = time.perf_counter(), time.process_time()
        await evaluate(Actor("bench", lambda task: policy), [make_task(one) for one in range(count)], rig, journal)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        assert all(row.turns == TURNS for row in journal.rows())
    turns = count * TURNS
    return {"owner_cpu_ms": 1e3 * cpu / turns, "turns_a_second": turns / seconds}


async def play_here(options: argparse.Namespace) -> dict[str, float]:
    """All in this process."""
    chat, SleepingMachine.scale = _chat(options.model), options.scale
    async with Pool(Machines(), Limits(), options.at_once) as pool:
        return await play(open_rig(chat, pool, _rollout()), Recorded(chat, options.scale, fixed=True), options.episodes)


async def play_there(options: argparse.Namespace) -> dict[str, float]:
    """On two actors."""
    chat, room = _chat(options.model), options.at_once // 2
    policy = Recorded(chat, options.scale, fixed=True)
    actors: list[Any] = [
        ray.remote(FakeNode).options(max_concurrency=CALLS, num_cpus=0).remote(options.model, options.scale, room) for _ in range(2)
    ]
    for actor in actors:
        await actor.open.remote()
    nodes = [RemoteNode(f"node {number}", actor) for number, actor in enumerate(actors)]
    async with Dispatcher(nodes, [policy], room) as dispatcher:
        return await play(remote_rig(chat, _rollout(), 1 << 24, dispatcher), policy, options.episodes)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--at-once", type=int, default=128)
    parser.add_argument("--scale", type=float, default=0.3, help="of the recorded latencies")
    parser.add_argument("--model", type=Path, help="a model folder, for its tokenizer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=10**8)
    figures = {"load_before": os.getloadavg()[0]}
    for name, work in (("here", play_here), ("nodes", play_there)):
        figures |= {f"{key}/{name}": value for key, value in asyncio.run(work(options)).items()}
    for name, value in figures.items():
        print(f"{name:24} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
