#!/usr/bin/env python3
"""A few steps of every method with SmolLM2-135M on the small suite.

    python scripts/bench/methods.py [--out DIR] [--only NAME ...] [--steps 2]

Not a comparison: a model of this size resolves next to nothing in a few steps. It shows that each configuration of docs/methods runs
end to end on real tasks, what a step takes, and what its own metrics say. Finished runs are kept: the same command goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.convert import convert_smollm2, fetch_smollm2

ROOT = Path(__file__).parents[2]

SMALL = {
    "model.context": "1536",
    "sandbox.concurrency": "8",
    "sandbox.memory_mb": "512",
    "sandbox.disk_mb": "128",
    "sandbox.command_seconds": "20",
    "rollout.max_new_tokens": "160",
    "rollout.observation_chars": "1200",
    "rollout.format_errors": "2",
    "rollout.max_turns": "4",
    "learner.ranks": "1",
    "learner.zero_stage": "1",
    "learner.micro_tokens": "2048",
    "learner.dtype": "float32",
    "policy.engines": "1",
    "policy.memory_gb": "2",
    "policy.dtype": "float32",
    "train.eval_every": "0",
}
STEP = {"rollout.tasks_per_step": "2", "rollout.group_size": "4"}
TUNE = {"rft.episodes": "gold", "rft.per_task": "1", "rft.lr": "1e-4", "rft.batch_episodes": "4", "tasks.limit": "24"}
SRL = {"srl.episodes": "gold", "srl.batch": "4", "srl.rounds": "4", "srl.answers": "4", "tasks.limit": "24"}
METHODS: dict[str, dict[str, str]] = {
    "rft": TUNE,
    "srl_then_rl": STEP | SRL,
    "ms_grpo": STEP | {"rollout.temperature": "1.0", "credit.filter_on": "shaped"},
    "hicra": STEP | {"credit.filter_on": "shaped"},
    "hindsight": STEP,
    "interactive": STEP,
    "reward_study": STEP | {"reward.kind": "fraction"},
}
"""What each changes beside SMALL; all but the first start from the fine-tuned model, which knows the format."""
SHOWN = (
    *(
        "loss/loss",
        "reward/resolved",
        "reward/channel",
        "batch/kept_groups",
        "batch/format_error_rate",
        "train/version",
        "planning/fraction",
    ),
    *("planning/entropy", "execution/entropy", "hindsight/hinted_turns", "time/step_seconds"),
)


def greengrad(folder: Path, *words: str) -> None:
    """One command in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "pipeline.cli", *words], cwd=folder, check=True, env=environment)


def prepare(folder: Path) -> None:
    """The suite, the model and an expert's episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").is_dir():
        convert_smollm2(fetch_smollm2(folder / "wheels"), folder / "model")
    if not (folder / "suite").is_dir():
        greengrad(folder, "tasks", "build", "small", "--out", "suite")
    model = ("--model.path", "model", "--model.context", "1536")
    greengrad(
        folder, "rollout", str(ROOT / "configs" / "rollout_gold.yaml"), "--tasks", "suite", "--run", "gold", *model, "--tasks.limit", "24"
    )


def run(folder: Path, name: str, steps: int) -> float:
    """A configuration for a few steps; its seconds."""
    start = "model" if name == "rft" else "rft/model"
    keys = SMALL | METHODS[name] | {"tasks.suite": "suite", "model.path": start, "train.steps": str(steps)}
    keys |= {"srl.steps": str(steps)} if name == "srl_then_rl" else {}
    begin = time.monotonic()
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    greengrad(folder, "train", str(ROOT / "configs" / f"{name}.yaml"), "--run", name, *words)
    return time.monotonic() - begin


def tell(folder: Path, name: str, seconds: float) -> None:
    """Its last step."""
    for part in (folder / name / "srl", folder / name):
        lines = (part / "metrics.jsonl").read_text().splitlines() if (part / "metrics.jsonl").is_file() else []
        if lines:
            last = json.loads(lines[-1])
            told = ", ".join(f"{key} {last[key]:.3g}" for key in SHOWN if key in last)
            print(f"{part.relative_to(folder)}: {len(lines)} steps, {told}", flush=True)
    print(f"{name}: {seconds:.0f} s in all", flush=True)


def main() -> None:
    """Each in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    prepare(folder)
    for name in arguments.only:
        tell(folder, name, run(folder, name, arguments.steps))


if __name__ == "__main__":
    main()
