#!/usr/bin/env python3
"""How fast the vLLM server is with our options: its start, tokens a second at several numbers of requests, a reload, memory, cpu.

    python scripts/bench/engine.py MODEL_FOLDER [--quick] [--json FILE] [-- MORE SERVER OPTIONS]

More options and the environment (OMP_WAIT_POLICY, VLLM_CPU_OMP_THREADS_BIND) can be compared by calling it again. Prompts of about
400 tokens, 96 new ones each. The load of the machine before the start is part of the figures: compare runs on an idle machine.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.config import ModelConfig, PolicyConfig
from pipeline.engine import engine_command, free_port, start_engine
from pipeline.memory import resident_bytes
from pipeline.policy import Sampling, VllmPolicy
from pipeline.prompt import load_chat

NEW_TOKENS = 96


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder (greengrad's quickstart makes one)")
    parser.add_argument("--quick", action="store_true", help="only 16 requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    words = sys.argv[1:]
    ours, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(ours)
    figures = asyncio.run(measure(options.model, more, (16,) if options.quick else (1, 8, 16, 32)))
    for name, value in figures.items():
        print(f"{name:24} {value:10.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


async def measure(model: Path, more: Sequence[str], counts: Sequence[int]) -> dict[str, float]:
    """Start a server, load it, stop it."""
    figures = {"load_before": os.getloadavg()[0]}
    template = load_chat(model).template
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = PolicyConfig(max_requests=max(counts))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [*engine_command(ModelConfig(path=model), settings, port), *more]
        engine = await start_engine(command, url, Path(folder) / "vllm.log")
        client = httpx.AsyncClient(base_url=url, timeout=600, trust_env=False)
        policy = VllmPolicy(client, template, Sampling(1.0, template.stop_ids), engine)
        try:
            await policy.prepare()
            figures["start_s"] = time.monotonic() - started
            for count in counts:
                figures |= await measure_requests(policy, template.start("You fix bugs.", "x = 1\n" * 90), count)
            started = time.monotonic()
            await policy.load(model, 1)
            figures["reload_s"] = time.monotonic() - started
            figures["resident_mb"] = resident_bytes(engine.process.pid) / 2**20
        finally:
            await policy.close()
    return figures


async def measure_requests(policy: VllmPolicy, prompt: Sequence[int], count: int) -> dict[str, float]:
    """Tokens a second with `count` requests at once."""
    started = time.monotonic()
    prompts = [[*prompt[:-8], 300 + number, *prompt[-8:]] for number in range(count)]
    done = await asyncio.gather(*(policy.sample(one, NEW_TOKENS, seed) for seed, one in enumerate(prompts)))
    return {f"tokens_per_s/{count}": sum(len(one.ids) for one in done) / (time.monotonic() - started)}


if __name__ == "__main__":
    main()
