"""What the learner and its ranks say to each other, and the arithmetic of an optimiser's steps; knows no torch and no DeepSpeed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from .config import LearnerConfig, LossConfig, OptimConfig
from .packs import MicroBatch

Objective = Literal["policy", "fine_tune"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Where weights go without a folder."""

    kind: Literal["nccl", "ipc"]
    url: str
    """Of the engine's server."""
    engine_ranks: int = 1


@dataclass(frozen=True, slots=True)
class LearnerSetup:
    """Everything that a rank needs to start."""

    model_folder: Path
    """config.json, tokenizer and safetensors; the tokenizer goes into every export."""
    learner: LearnerConfig
    optim: OptimConfig
    loss: LossConfig
    logs: Path
    """Folder for rank0.log ..."""
    temperature: float = 1.0
    """That of the sampling: log-probs are taken at it. Fine-tuning always uses 1."""
    rope_yarn: float = 1.0
    """How many times the model's own length it reads: model.rope_yarn."""
    total_steps: int = 0
    """Optimiser steps at which a cosine schedule reaches 0; a constant schedule ignores it."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The engine's: what is published is what it computes with, bit by bit."""
    transfer: Transfer | None = None
    """None: weights go to the engine through a folder."""
    alone: bool = False
    """Each sample is a micro-batch of its own: the model's attention cannot do packs. The ranks find out at the start."""
    start_seconds: float = 900.0
    """Limit for loading the model (the first start also compiles DeepSpeed's communication extension)."""
    command_seconds: float = 7200.0
    """Limit for one command."""


@dataclass(frozen=True, slots=True)
class Train:
    """One rank's share of one or more optimiser steps: the same number of micro-batches on each rank."""

    minibatches: tuple[tuple[MicroBatch, ...], ...]
    objective: Objective


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probs of the masked tokens, or the entropies or the likeliest tokens there, without gradients."""

    packs: tuple[MicroBatch, ...]
    reference: bool = False
    """Under the reference model instead of the current weights."""
    entropy: bool = False
    likeliest: int = 0
    """How many tokens of each place; 0: what was sampled is scored."""


@dataclass(frozen=True, slots=True)
class Export:
    """Weights -> safetensors."""

    folder: Path
    adapters: bool = False
    """The adapters alone, where there are any."""


@dataclass(frozen=True, slots=True)
class Send:
    """Weights -> the engine of `setup.transfer`."""


@dataclass(frozen=True, slots=True)
class Save:
    """Weights, optimiser and step count -> a checkpoint."""

    folder: Path


@dataclass(frozen=True, slots=True)
class Restore:
    """A checkpoint -> weights, optimiser and step count."""

    folder: Path


Command = Train | Score | Export | Send | Save | Restore


@dataclass(frozen=True, slots=True)
class LossStats:
    """Metrics of one or more micro-batches: weighted means (they add up, like the loss) and maxima."""

    loss: float = 0.0
    clip_low: float = 0.0
    """Share of tokens held by 1 - eps_low (A < 0)."""
    clip_high: float = 0.0
    """Share of tokens held by 1 + eps_high (A > 0)."""
    clip_dual: float = 0.0
    """Share of tokens held by dual_clip (A < 0)."""
    ratio_mean: float = 0.0
    delta_mean: float = 0.0
    """Mean |log pi_old - log p(engine)|: the train-inference mismatch."""
    delta_k3: float = 0.0
    """Mean r - 1 - log r with r = pi_old / p(engine): the same as a divergence KL(engine || learner), in nats, never negative."""
    correction_mean: float = 0.0
    """Mean importance weight after its bounds; 1 when off."""
    correction_cut: float = 0.0
    """Share of tokens whose importance weight was truncated or masked."""
    entropy: float = 0.0
    """Mean over tokens, in nats."""
    kl: float | None = None
    """Mean estimated divergence from the reference model; None where there is none."""
    directive: float | None = None
    """The teacher's part of the loss: mean weighted divergence, 0 at tokens without a teacher; None where there is none."""
    surprise: float = 0.0
    """Mean - log pi."""
    planning: float = 0.0
    """Share of planning tokens (planning.py); what follows are sums over them alone, of the same weights."""
    execution: float = 0.0
    """Share of the others."""
    planning_entropy: float = 0.0
    planning_surprise: float = 0.0
    planning_top: float = 0.0
    """Of those whose entropy is in the highest 30 % of their micro-batch."""
    ratio_max: float = 0.0
    delta_max: float = 0.0


def merge_stats(parts: Sequence[LossStats]) -> LossStats:
    """The stats of an optimiser step from those of its micro-batches, over all ranks."""
    merged: dict[str, Any] = {}
    for field in fields(LossStats):
        values = [value for part in parts if (value := getattr(part, field.name)) is not None]
        merged[field.name] = (max(values) if field.name.endswith("_max") else sum(values)) if values else None
    return LossStats(**merged)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one rank saw of one optimiser step."""

    stats: LossStats
    grad_norm: float
    """Before clipping, over all ranks."""
    lr: float


@dataclass(frozen=True, slots=True)
class TrainReport:
    """One rank's answer to Train."""

    steps: tuple[StepReport, ...]
    peak_memory_gb: float
    """Highest resident memory of the rank's process so far."""


def learning_rate(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up over warmup_steps, then constant or cosine to 0 at total_steps."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    match optim.schedule:
        case "constant":
            return optim.lr
        case "cosine":
            progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
            return optim.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case _:
            assert_never(optim.schedule)


def split_minibatches(groups: Sequence[str], size: int, seed: tuple[int, int]) -> list[list[int]]:
    """Indices of samples, given the group of each, in as few parts of at most `size` as possible, of nearly equal length.

    Groups are shuffled and stay together, as far as parts allow: their samples share their beginnings, which are then computed once.
    """
    names = sorted(set(groups))
    place = dict(zip(names, np.random.default_rng(seed).permutation(len(names)).tolist(), strict=True))
    order = sorted(range(len(groups)), key=lambda index: place[groups[index]])
    return [part.tolist() for part in np.array_split(order, max(1, math.ceil(len(groups) / size)))]


def measure_phases(stats: LossStats) -> dict[str, float]:
    """Planning and execution tokens apart: mean entropy (nats), and perplexity relative to that of all tokens; one that has no token is
    left out. Only ratios are taken: `stats` may be a sum over steps."""
    total = stats.execution + stats.planning
    metrics: dict[str, float] = {}
    for name, share, entropy, surprise in (
        ("planning", stats.planning, stats.planning_entropy, stats.planning_surprise),
        ("execution", stats.execution, stats.entropy - stats.planning_entropy, stats.surprise - stats.planning_surprise),
    ):
        if share > 0:
            metrics[f"{name}/entropy"] = entropy / share
            metrics[f"{name}/relative_perplexity"] = math.exp(surprise / share - stats.surprise / total)
    if stats.planning > 0:
        metrics["planning/top_entropy_share"] = stats.planning_top / stats.planning
    return metrics


def summarise_steps(replies: Sequence[TrainReport], objective: Objective, copies: int = 1) -> dict[str, float]:
    """Metrics of a call: over ranks first, then the mean over its optimiser steps; fine-tuning has no ratio and no clip.

    copies: that many ranks in a row report the same micro-batches (sequence parallelism).
    """
    steps = [merge_stats([reply.steps[index].stats for reply in replies[::copies]]) for index in range(len(replies[0].steps))]
    known = [name for name, value in asdict(steps[0]).items() if value is not None and not name.startswith(("planning", "execution"))]
    names = known if objective == "policy" else ["loss", "entropy"]
    metrics = {f"loss/{name}": float(np.mean([asdict(step)[name] for step in steps])) for name in names}
    norms = [step.grad_norm for step in replies[0].steps]
    return (
        metrics
        | measure_phases(merge_stats(steps))
        | {
            "optim/steps": float(len(steps)),
            "optim/lr": replies[0].steps[-1].lr,
            "optim/grad_norm": float(np.mean(norms)),
            "optim/grad_norm_max": max(norms),
            "optim/peak_memory_gb": sum(reply.peak_memory_gb for reply in replies),
        }
    )
