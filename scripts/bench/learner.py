#!/usr/bin/env python3
"""The learner's forward and backward pass beside TRL's GRPOTrainer: the same model, tokens and objective, loss and gradients compared.

    python scripts/bench/learner.py --model DIR [--layers 8] [--lengths 1024 4096] [--shared 0 0.5 0.75] [--micro-tokens 4096]

A group of 8 episodes of which so much of each is shared (prompt), the rest many turns: what was sampled, and observations that carry no
loss. DAPO's objective, on-policy, token mean, float32. TRL (PyPI, in a throwaway environment over this one's packages) runs with its
fused head and each of the batch sizes that the token budget allows; its best time is taken. Each side is a process of its own; memory is
its peak above what it held with the model and its gradients in place. The optimiser and DeepSpeed's sharding are the same code on both
sides and left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

TRL = ("trl==1.16.0", "accelerate==1.15.0")
GROUP = 8


def main() -> None:
    """Parent: make the work, run both sides, compare. Child (--side): one side."""
    options = _options()
    if options.side:
        run_side(options)
        return
    print("| episode | shared | side | s | tokens trained/s | times | peak above model, MB | of TRL's | loss | largest gap of gradients |")
    print("|" + "---|" * 10)
    with tempfile.TemporaryDirectory(prefix="greengrad-learner-") as scratch:
        python = install_trl(Path(scratch))
        model = cut_model(options, Path(scratch) / "model")
        for length in options.lengths:
            for shared in options.shared:
                compare(options, Path(scratch), python, model, length, shared)


def install_trl(scratch: Path) -> str:
    """A Python that sees this one's packages and TRL."""
    venv.create(scratch / "venv", with_pip=True)
    python = str(scratch / "venv" / "bin" / "python")
    paths = "\n".join(path for path in sys.path if path.endswith("site-packages"))
    next((scratch / "venv").glob("lib/python*/site-packages")).joinpath("beside.pth").write_text(paths)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *TRL], check=True, timeout=600)
    return python


def cut_model(options: argparse.Namespace, folder: Path) -> Path:
    """The first layers of the model, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32", num_hidden_layers=options.layers)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(folder)
    return folder


def compare(options: argparse.Namespace, scratch: Path, python: str, model: Path, length: int, shared: float) -> None:
    """One row a side."""
    work = scratch / "work.npz"
    make_work(work, length, shared)
    found = {}
    for side in ("trl", "ours"):
        command = [
            python,
            __file__,
            "--side",
            side,
            "--model",
            str(model),
            "--work",
            str(work),
            "--micro-tokens",
            str(options.micro_tokens),
        ]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment, cwd=scratch, check=False)
        if done.returncode:
            sys.exit(f"{side}: {done.stderr[-3000:]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
    gap = gradient_gap(work.with_suffix(".trl.npz"), work.with_suffix(".ours.npz"))
    for one in found.values():
        times = found["trl"]["seconds"] / one["seconds"]
        memory = one["megabytes"] / found["trl"]["megabytes"]
        figures = f"{one['seconds']:.2f} | {one['trained'] / one['seconds']:.0f} | {times:.2f} | {one['megabytes']:.0f} | {memory:.2f}"
        print(f"| {length} | {100 * shared:.0f} % | {one['name']} | {figures} | {one['loss']:.6f} | {gap:.1e} |", flush=True)


def make_work(path: Path, length: int, shared: float) -> None:
    """A group: ids (8, length), what is scored, advantages; turns of 64 sampled tokens and 64 of an observation."""
    rng = np.random.default_rng(0)
    prompt = max(16, int(length * shared))
    ids = rng.integers(100, 20_000, (GROUP, length))
    ids[:, :prompt] = ids[0, :prompt] if shared else ids[:, :prompt]
    mask = (np.arange(length) >= prompt) & ((np.arange(length) - prompt) // 64 % 2 == 0)
    np.savez(path, ids=ids, mask=np.tile(mask, (GROUP, 1)), prompt=prompt, advantages=rng.normal(size=GROUP))


def gradient_gap(a: Path, b: Path) -> float:
    """The largest difference of an element, relative to the largest element of its tensor."""
    first, second = np.load(a), np.load(b)
    assert sorted(first) == sorted(second), "the two sides have other parameters"
    return max(float(np.abs(first[name] - second[name]).max() / np.abs(first[name]).max()) for name in first)


def run_side(options: argparse.Namespace) -> None:
    """Time one side, its result as a line of JSON, its gradients beside the work."""
    import torch
    from transformers import AutoModelForCausalLM

    work = dict(np.load(options.work))
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make = trl_side if options.side == "trl" else our_side
    best: dict[str, Any] = {"seconds": float("inf")}
    for name, run in make(model, work, options.micro_tokens):
        before = resident()
        model.zero_grad(set_to_none=False)
        begin = time.monotonic()
        loss = run()
        seconds = time.monotonic() - begin
        if seconds < best["seconds"]:
            best = {"name": name, "seconds": seconds, "loss": loss, "megabytes": peak() - before, "trained": int(work["mask"].sum())}
    np.savez(options.work.with_suffix(f".{options.side}.npz"), **{n: p.grad.numpy() for n, p in model.named_parameters()})
    print(json.dumps(best))


def our_side(model: Any, work: dict[str, Any], micro_tokens: int) -> list[tuple[str, Callable[[], float]]]:
    """Packs, through the scorer and the objective of the learner."""
    import torch

    from pipeline.attention import register_attention
    from pipeline.config import LossConfig
    from pipeline.head import Layout, Scorer, Scoring
    from pipeline.loss import Tokens, policy_loss
    from pipeline.packs import Room, pack_samples
    from pipeline.types import Sample

    model.set_attn_implementation(register_attention())
    scorer = Scorer(model, Scoring(chunk=1024))
    zeros = np.zeros(work["ids"].shape[1], dtype=np.float32)
    rows = zip(work["ids"], work["mask"], work["advantages"], strict=True)
    samples = [Sample(str(n), "g", ids, mask, zeros, (mask * a).astype(np.float32)) for n, (ids, mask, a) in enumerate(rows)]

    def run() -> float:
        total = 0.0
        for pack in pack_samples(samples, Room(micro_tokens))[0]:
            ids, positions, sources, targets, engine, advantages, weights, sequences = (
                torch.from_numpy(array)
                for array in (
                    *(pack.ids_N, pack.positions_N, pack.sources_M, pack.targets_M),
                    *(pack.engine_M, pack.advantages_M, pack.weights_M, pack.sequences_M),
                )
            )
            scores = scorer(Layout(ids, positions, sources, pack.runs), targets, 1.0)
            loss, stats = policy_loss(*scores, Tokens(engine, None, advantages, weights, sequences), LossConfig())
            loss.backward()  # type: ignore[no-untyped-call]
            total += stats.loss
        return total

    return [("greengrad", run)]


def trl_side(model: Any, work: dict[str, Any], micro_tokens: int) -> list[tuple[str, Callable[[], float]]]:
    """GRPOTrainer's own loss, with each batch size that fits the budget."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    settings = {"loss_type": "dapo", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.3, "use_cpu": True, "bf16": False, "report_to": "none"}
    sizes = {"per_device_train_batch_size": GROUP, "num_generations": GROUP, "temperature": 1.0, "gradient_checkpointing": False}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=GRPOConfig("trl-out", **settings, **sizes),
        train_dataset=Dataset.from_dict({"prompt": ["x"] * GROUP}),
        processing_class=AutoTokenizer.from_pretrained(model.name_or_path),
    )
    trainer.current_gradient_accumulation_steps = 1
    prompt = int(work["prompt"])
    ids, mask = torch.from_numpy(work["ids"]), torch.from_numpy(work["mask"]).long()
    advantages = torch.from_numpy(work["advantages"]).float()

    def run(size: int) -> float:
        total = 0.0
        for start in range(0, GROUP, size):
            rows = slice(start, start + size)
            inputs = {"prompt_ids": ids[rows, :prompt], "completion_ids": ids[rows, prompt:], "advantages": advantages[rows]}
            inputs |= {"prompt_mask": torch.ones_like(ids[rows, :prompt]), "completion_mask": torch.ones_like(ids[rows, prompt:])}
            inputs |= {"tool_mask": mask[rows, prompt:], "num_items_in_batch": mask.sum()}
            model.eval()
            loss = trainer._compute_loss(model, inputs)
            loss.backward()
            total += float(loss.detach())
        return total

    allowed = [size for size in (1, 2, 4, 8) if size == 1 or size * ids.shape[1] <= micro_tokens]
    return [(f"TRL, {size} at a time", partial(run, size)) for size in allowed]


def resident() -> float:
    """Megabytes held now; the peak is set back to it where the kernel allows."""
    Path("/proc/self/clear_refs").write_text("5")
    return float(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))) / 1e3


def peak() -> float:
    """Megabytes, the most since `resident`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--shared", type=float, nargs="+", default=[0.0, 0.5, 0.75])
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=("trl", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
