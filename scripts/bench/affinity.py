#!/usr/bin/env python3
"""Several engines: the episodes of a group at one of them beside each request at the next; the real vLLM.

    python scripts/bench/affinity.py --model FOLDER [--engines N] [--groups N] [--json FILE]

Each group has one long prompt; eight siblings ask with it, then with it and their first answer, as two turns of an episode do. Prefix
caches are emptied before each way. What differs is how often a prompt's beginning is computed: once a group, or once a group and engine.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.config import Config, ModelConfig, PolicyConfig, TasksConfig
from pipeline.engines import Engines, start_engines
from pipeline.policy import VllmPolicy
from pipeline.prompt import load_chat

SIBLINGS = 8
ANSWER = 16
"""Tokens of each answer."""


async def play(choose: Callable[[int], VllmPolicy], prompts: list[list[int]]) -> float:
    """Seconds of two turns of every sibling, all groups at once."""

    async def episode(group: int, sibling: int) -> None:
        first = await choose(group).sample(prompts[group], ANSWER, seed=group * SIBLINGS + sibling)
        await choose(group).sample([*prompts[group], *first.ids, *prompts[group][:64]], ANSWER, seed=sibling)

    began = time.perf_counter()
    await asyncio.gather(*(episode(group, sibling) for group in range(len(prompts)) for sibling in range(SIBLINGS)))
    return time.perf_counter() - began


async def empty_caches(policy: Engines) -> None:
    """As a publish does."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for member in policy.members:
            (await client.post(f"{member.url}/reset_prefix_cache", json={})).raise_for_status()


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Both ways, twice each in turn; the better time of each."""
    config = Config(
        tasks=TasksConfig(suite=folder),
        model=ModelConfig(path=options.model, context=2048),
        policy=PolicyConfig(engines=options.engines, memory_gb=1, max_requests=16),
    )
    template = load_chat(options.model).template
    prompts = [template.start(f"Group {group}.", f"{group} is wrong where its input is empty. " * 100) for group in range(options.groups)]
    policy = await start_engines(config, template, folder / "vllm.log")
    assert isinstance(policy, Engines)
    turn = count()
    ways: dict[str, Callable[[int], VllmPolicy]] = {
        "by_group_s": lambda group: policy.members[group % len(policy.members)],
        "by_request_s": lambda group: policy.members[next(turn) % len(policy.members)],
    }
    figures = dict.fromkeys(ways, float("inf"))
    try:
        for name, choose in [*ways.items()] * 2:
            await empty_caches(policy)
            figures[name] = min(figures[name], await play(choose, prompts))
    finally:
        await policy.close()
    return figures | {"prompt_tokens": float(len(prompts[0])), "ratio": figures["by_request_s"] / figures["by_group_s"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        figures = {"load_before": load, **asyncio.run(measure(options, Path(folder)))}
    for name, value in figures.items():
        print(f"{name:16} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
