"""Rejection fine-tuning: passing episodes -> samples -> epochs of cross-entropy (arXiv:2508.03501, section 3); knows no model.

A turn that was malformed stays in the context and carries no loss; RL, by contrast, masks nothing by format.
A run that was killed goes on after its last whole epoch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..batch import merge_turns
from ..config import Config, LossConfig, OptimConfig, RftConfig
from ..journal import Journal
from ..learner import DeepSpeedLearner
from ..progress import progress
from ..sinks import open_sinks
from ..train import find_checkpoint, prune_checkpoints, save_checkpoint
from ..types import Batch, Episode, Learner, Sample, Stop
from ..world import setup_learner


class FineTuner(Learner, Protocol):
    """A learner that also takes demonstrations."""

    def fine_tune(self, batch: Batch) -> dict[str, float]:
        """Cross-entropy on the masked tokens, one optimiser step for each optim.batch_episodes samples."""
        ...


def rft_samples(episodes: Iterable[Episode]) -> tuple[Sample, ...]:
    """The resolved episodes, loss on their well-formed turns only; advantages are 1 on those tokens."""
    samples: list[Sample] = []
    for episode in episodes:
        if episode.stop is Stop.INFRA or episode.reward != 1.0:
            continue
        well_formed_N = np.array([turn.call is not None for turn in episode.turns], dtype=bool)
        samples += merge_turns(episode, np.ones(len(episode.turns)), well_formed_N)
    return tuple(samples)


def rft_optim(optim: OptimConfig, rft: RftConfig) -> OptimConfig:
    """The optimiser's settings for this stage: its own rate, warm-up and batch, a cosine to 0."""
    stage = {"lr": rft.lr, "warmup_steps": rft.warmup_steps, "batch_episodes": rft.batch_episodes, "schedule": "cosine"}
    return optim.model_copy(update=stage)


def count_steps(samples: int, rft: RftConfig) -> int:
    """Optimiser steps of the whole stage."""
    return rft.epochs * math.ceil(samples / rft.batch_episodes)


def tune_on(config: Config, rft: RftConfig, demonstrations: Path, run: Path) -> None:
    """The whole stage: the passing episodes of one run folder -> RUN/model."""
    with Journal(demonstrations, readonly=True) as journal:
        samples = rft_samples(journal.episodes())
    if not samples:
        raise ValueError(f"{demonstrations}: holds no resolved episode to learn from")
    # Cross-entropy reads no key of the objective; a reference model would be loaded for nothing.
    tuned = config.model_copy(update={"optim": rft_optim(config.optim, rft), "loss": LossConfig()})
    # The next stage takes much smaller steps: from weights on bfloat16's grid they would be rounded away at every publish.
    setup = replace(setup_learner(tuned, run, count_steps(len(samples), rft)), export_dtype="float32")
    with Journal(run) as journal:
        learner = DeepSpeedLearner(setup)
        try:
            fine_tune(rft, journal, learner, samples, config.telemetry.sinks)
        finally:
            learner.close()


def fine_tune(rft: RftConfig, journal: Journal, learner: FineTuner, samples: Sequence[Sample], sinks: Sequence[str] = ()) -> None:
    """Train the epochs that are not committed, then write the model to RUN/model."""
    saved = find_checkpoint(journal.run, journal.next_step)
    if saved is not None:
        learner.restore(saved)
    with open_sinks(sinks, journal.run, journal.steps()) as copy:
        for epoch in range(journal.next_step, rft.epochs):
            metrics = train_epoch(rft, learner, samples, epoch)
            save_checkpoint(journal.run, learner, epoch)
            journal.commit_step(epoch, metrics)
            copy(epoch, metrics)
            prune_checkpoints(journal.run, keep=1)
    learner.export(journal.run / "model")


def train_epoch(rft: RftConfig, learner: FineTuner, samples: Sequence[Sample], epoch: int) -> dict[str, float]:
    """All samples once, in an order that depends on the epoch alone; the mean of each metric."""
    order = np.random.default_rng(epoch).permutation(len(samples))
    parts = np.array_split(order, math.ceil(len(samples) / rft.batch_episodes))
    reports = []
    with progress(f"fine-tune, epoch {epoch + 1}/{rft.epochs}", len(parts)) as bar:
        for part in parts:
            reports.append(learner.fine_tune(Batch(tuple(samples[index] for index in part))))
            bar.advance(f"loss {reports[-1]['loss/loss']:.3f}")
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
