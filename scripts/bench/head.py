#!/usr/bin/env python3
"""The vocabulary head without the logits: peak memory and time of forward and backward, beside full logits and beside TRL's head.

    python scripts/bench/head.py [--tokens 8192] [--hidden 576] [--vocabulary 49152 152064] [--chunk 1024] [--sides "full logits" ...]

float32, each side in a process of its own; the peak is what a side takes above its inputs and their gradients (weight, hidden states).
TRL is installed from PyPI into a throwaway environment, as in learner.py. Gradients are compared with the first side's. Full logits take
about four times tokens x vocabulary x 4 bytes; where that is more than the machine has, name the other --sides. "64 bins" scores 64 more
tokens of each place (hindsight.top_k), "64 likeliest" finds them, forward alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from learner import install_trl, peak, resident

from pipeline.head import Scoring, find_likeliest, score_tokens

SIDES = ("full logits", "TRL", "greengrad", "64 bins", "64 likeliest")
BINS = 64


def main() -> None:
    """Parent: all sides for each vocabulary. Child (--side): one."""
    options = _options()
    if options.side:
        run_side(options)
        return
    print("| vocabulary | side | s | peak above inputs, MB | largest gap of gradients |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="greengrad-head-") as scratch:
        python = install_trl(Path(scratch)) if "TRL" in options.sides else sys.executable
        for size in options.vocabulary:
            first: dict[str, Any] = {}
            for side in options.sides:
                words = ["--side", side, "--vocabulary", str(size), "--tokens", str(options.tokens), "--hidden", str(options.hidden)]
                out = Path(scratch) / f"{side}.npz"
                command = [python, __file__, *words, "--chunk", str(options.chunk), "--out", str(out)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
                if done.returncode:
                    print(f"| {size} | {side} | failed (exit {done.returncode}) | | |", flush=True)
                    continue
                one = json.loads(done.stdout.splitlines()[-1])
                gap = ""
                if side != "64 likeliest":
                    gradients = dict(np.load(out))
                    first = first or gradients
                    gap = f"{max(float(np.abs(gradients[name] - first[name]).max() / np.abs(first[name]).max()) for name in first):.1e}"
                print(f"| {size} | {side} | {one['seconds']:.1f} | {one['megabytes']:.0f} | {gap} |", flush=True)


def run_side(options: argparse.Namespace) -> None:
    """Forward and backward once; the result as JSON, the gradients in a file."""
    torch.manual_seed(0)
    hidden_MD = torch.randn(options.tokens, options.hidden).requires_grad_()
    weight_VD = (torch.randn(options.vocabulary[0], options.hidden) / options.hidden**0.5).requires_grad_()
    targets_M = torch.randint(options.vocabulary[0], (options.tokens,))
    hidden_MD.grad, weight_VD.grad = torch.zeros_like(hidden_MD), torch.zeros_like(weight_VD)
    score = scorers(options.chunk)[options.side]
    score(hidden_MD[:64], weight_VD, targets_M[:64]).sum()  # what is imported or compiled at the first call
    before = resident()
    begin = time.monotonic()
    scores = score(hidden_MD, weight_VD, targets_M).mean()
    if scores.requires_grad:
        scores.backward()
    result = {"seconds": time.monotonic() - begin, "megabytes": peak() - before}
    np.savez(options.out, hidden=hidden_MD.grad.numpy(), weight=weight_VD.grad.numpy())
    print(json.dumps(result))


def scorers(chunk: int) -> dict[str, Any]:
    """Side -> (hidden states, weight, targets) -> log-probs."""

    def full(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(hidden_MD @ weight_VD.t(), -1).gather(-1, targets_M[:, None])[:, 0]

    def trl(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # type: ignore[import-not-found]
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE  # type: ignore[import-not-found]

        size, outputs = _CHUNKED_LOGPROB_CHUNK_SIZE, ("log_probs", "entropy")
        scored: torch.Tensor = ChunkedLogProbFunction.apply(hidden_MD, weight_VD, None, targets_M, 1.0, size, None, 1.0, outputs)[0]
        return scored

    def ours(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        return score_tokens(hidden_MD, weight_VD, targets_M, Scoring(chunk))[0]

    def bins(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        targets_MJ = torch.cat([targets_M[:, None], torch.randint(len(weight_VD), (len(targets_M), BINS))], dim=1)
        return score_tokens(hidden_MD, weight_VD, targets_MJ, Scoring(chunk))[0][:, 0]

    def likeliest(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        return find_likeliest(hidden_MD, weight_VD, BINS, Scoring(chunk))[0]

    return dict(zip(SIDES, (full, trl, ours, bins, likeliest), strict=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49_152, 152_064])
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
