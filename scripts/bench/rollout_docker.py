#!/usr/bin/env python3
"""Overhead of a turn with real containers, beside mini-swe-agent's batch runner with its own: wall less what model and command slept.

    python scripts/bench/rollout_docker.py --mini PYTHON [--at-once N ...] [--episodes N] [--json FILE]

The same model latencies (recorded, scaled), the same command (`sleep 0.2`, then 1,000 characters), the same image, 12 turns an episode.
Everything else counts: starting and removing containers, reaching them, prompts, records. Needs Docker and the base image
(scripts/base_image), and an interpreter with mini-swe-agent (python -m venv V; V/bin/pip install mini-swe-agent). Nothing is graded
on either side.
"""

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from rollout import MODEL_SECONDS, OBSERVATION, STATEMENT, THOUGHT, TOOL_SECONDS, TURNS, Recorded, TimedPool, make_task, open_rig

from pipeline.config import RolloutConfig
from pipeline.evaluate import Actor, evaluate
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from sandbox import Image, Limits, make_tree, open_backend
from sandbox.images import BASE

SLEEP = 0.2
"""Seconds of each command."""
COMMAND = f"sleep {SLEEP}; head -c 1000 /etc/services"
SCALE = 0.3
"""Of the recorded model latencies."""


async def run_ours(at_once: int, count: int) -> dict[str, float]:
    """Milliseconds per turn, containers included."""
    chat, rollout = Chat(ByteTemplate()), RolloutConfig(max_turns=TURNS, max_new_tokens=4096)
    policy = Recorded(chat, SCALE, fixed=True, bash=f"{THOUGHT}\n```bash\n{COMMAND}\n```")
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "run") as journal:
        image = make_image(Path(folder))
        async with TimedPool(open_backend("docker"), Limits(memory_mb=256, disk_mb=64), at_once, reuse=16) as pool:
            tasks = [replace(make_task(number), image=image) for number in range(count)]
            began = time.process_time()
            await evaluate(Actor("bench", lambda task: policy), tasks, open_rig(chat, pool, rollout), journal)
            cpu = time.process_time() - began
        assert all(row.turns == TURNS for row in journal.rows())
        wall = sum(row.seconds for row in journal.rows()) - pool.waited
    turns = count * TURNS
    return {"overhead_ms": 1e3 * (wall - policy.slept - turns * SLEEP) / turns, "cpu_ms": 1e3 * cpu / turns}


def make_image(folder: Path) -> Image:
    """The base image with a tree of one file."""
    (folder / "source").mkdir()
    (folder / "source" / "m.py").write_text("x = 1\n")
    make_tree(folder / "source", folder / "tree.tar")
    return Image(BASE, folder / "tree.tar")


def run_mini(python: Path, at_once: int, count: int) -> dict[str, float]:
    """The same under mini-swe-agent. All but the last command of an episode sleep."""
    texts = {"statement": STATEMENT, "answer": THOUGHT, "observation": OBSERVATION.decode(), "command": COMMAND, "image": BASE}
    numbers = {"model": MODEL_SECONDS, "tool": TOOL_SECONDS, "at_once": at_once, "count": count, "scale": SCALE, "turns": TURNS}
    script = Path(__file__).with_name("rollout_mini.py")
    done = subprocess.run([python, script], input=json.dumps(texts | numbers), stdout=subprocess.PIPE, text=True, timeout=1800, check=True)
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    return {"overhead_ms": found["overhead_ms"] - 1e3 * SLEEP * (TURNS - 1) / TURNS, "cpu_ms": found["cpu_ms"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mini", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--at-once", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    figures = {"load_before": os.getloadavg()[0]}
    for at_once in options.at_once:
        ours, theirs = asyncio.run(run_ours(at_once, options.episodes)), run_mini(options.mini, at_once, options.episodes)
        figures |= {f"{name}/{at_once}": value for name, value in ours.items()}
        figures |= {f"mini_{name}/{at_once}": value for name, value in theirs.items()}
        figures[f"overhead_over_mini/{at_once}"] = ours["overhead_ms"] / theirs["overhead_ms"]
    for name, value in figures.items():
        print(f"{name:24} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
