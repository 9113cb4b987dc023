#!/usr/bin/env python3
"""What it is worth to compute every distinct token once: recorded episodes, flat and packed, the same model, the same loss.

    python scripts/bench/tokens_once.py --run RUN --model DIR [--groups 4] [--micro-tokens 4096] [--threads 2] [--json FILE]

RUN is a folder of rollout or train. "merged": one sample an episode, as trained by default. "per turn": one
sample a turn, with its whole history before it. The ideal is flat tokens over distinct tokens; what attention costs more or less is in
the figure. Forward and backward of the whole batch, the best of --repeats; loss and gradient norm must agree.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.attention import register_attention
from pipeline.batch import merge_turns
from pipeline.head import Layout, Scorer, Scoring
from pipeline.journal import Journal
from pipeline.packs import MicroBatch, Room, count_tokens, pack_samples
from pipeline.types import Episode, Sample


@dataclass(frozen=True, slots=True)
class Row:
    """One form of the same batch."""

    name: str
    tokens: int
    seconds: float
    loss: float
    grad_norm: float


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="sdpa")
    model.set_attn_implementation(register_attention())
    scorer = Scorer(model, Scoring(chunk=1024))
    groups = read_groups(options.run, options.groups)
    rows: list[Row] = []
    for name, samples in (("merged", merged(groups)), ("per turn", per_turn(groups))):
        for share in (False, True):
            packs = pack_samples(samples, Room(options.micro_tokens, share=share))[0]
            label = f"{name}, {'packed' if share else 'flat'}"
            rows.append(measure(label, scorer, packs, options.repeats))
            print(f"{label}: {rows[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    show(rows, [len(group) for group in groups])
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def read_groups(run: Path, count: int) -> list[list[Episode]]:
    """Groups whose episodes have turns, the longest first."""
    with Journal(run, readonly=True) as journal:
        found: dict[str, list[Episode]] = {}
        for episode in journal.episodes():
            if episode.turns:
                found.setdefault(episode.group_id, []).append(episode)
    if not found:
        sys.exit(f"{run}: no episode with a turn")
    return sorted(found.values(), key=lambda group: -sum(len(episode.turns) for episode in group))[:count]


def merged(groups: Sequence[Sequence[Episode]]) -> list[Sample]:
    """As `credit.samples: merged` makes them, advantages +1 and -1 in turns."""
    return [
        sample
        for group in groups
        for number, episode in enumerate(group)
        for sample in merge_turns(episode, np.full(len(episode.turns), 1.0 - 2 * (number % 2)), np.ones(len(episode.turns), dtype=bool))
    ]


def per_turn(groups: Sequence[Sequence[Episode]]) -> list[Sample]:
    """As `credit.samples: per_turn` makes them."""
    return [
        sample
        for group in groups
        for number, episode in enumerate(group)
        for sample in merge_turns(
            episode,
            np.full(len(episode.turns), 1.0 - 2 * (number % 2)),
            np.ones(len(episode.turns), dtype=bool),
            [[turn] for turn in range(len(episode.turns))],
        )
    ]


def measure(name: str, scorer: Scorer, packs: Sequence[MicroBatch], repeats: int) -> Row:
    """The best time of forward and backward over all packs."""
    best, loss, norm = float("inf"), 0.0, 0.0
    for _ in range(repeats):
        scorer.zero_grad()
        begin = time.monotonic()
        loss = sum(backward(scorer, pack) for pack in packs)
        best = min(best, time.monotonic() - begin)
        norm = float(torch.stack([p.grad.norm() for p in scorer.parameters() if p.grad is not None]).norm())
    return Row(name, count_tokens([packs]), best, loss, norm)


def backward(scorer: Scorer, pack: MicroBatch) -> float:
    """Add one micro-batch's gradients; returns its loss."""
    ids, positions, sources, targets, advantages, weights = (
        torch.from_numpy(array)
        for array in (pack.ids_N, pack.positions_N, pack.sources_M, pack.targets_M, pack.advantages_M, pack.weights_M)
    )
    logprobs, _ = scorer(Layout(ids, positions, sources, pack.runs), targets, 1.0)
    loss: Any = -(weights * advantages * logprobs).sum()
    loss.backward()
    return float(loss.detach())


def show(rows: Sequence[Row], sizes: Sequence[int]) -> None:
    """A Markdown table, each packed form beside its flat one, and the flat merged one."""
    print(f"\n{len(sizes)} groups of {min(sizes)} to {max(sizes)} episodes\n")
    print("| form | tokens computed | s | ideal speed-up | measured | share of the ideal | loss | gradient norm |")
    print("|" + "---|" * 8)
    for number, row in enumerate(rows):
        flat = rows[number - number % 2]
        ideal, measured = flat.tokens / row.tokens, flat.seconds / row.seconds
        figures = f"{ideal:.2f} | {measured:.2f} | {100 * measured / ideal:.0f} %"
        print(f"| {row.name} | {row.tokens} | {row.seconds:.1f} | {figures} | {row.loss:.6f} | {row.grad_norm:.5f} |")
        assert np.isclose(row.loss, flat.loss, rtol=1e-4, atol=1e-6) and np.isclose(row.grad_norm, flat.grad_norm, rtol=1e-3)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
