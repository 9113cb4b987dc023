"""Learner weights -> policy, and the proof that they have arrived; knows the two seams, nothing of engines or ranks."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .types import Learner, Policy, Sample


class PublishError(Exception):
    """The policy does not hold the learner's weights: the run stops, or it would train on another model's samples."""


async def publish(
    learner: Learner, policy: Policy, folder: Path, version: int, *, probes: Sequence[Sequence[int]], tolerance: float
) -> dict[str, float]:
    """Export, load and compare log-probs on probe sequences; PublishError when their mean distance is above the tolerance."""
    started = time.monotonic()
    await asyncio.to_thread(learner.export, folder)
    await policy.load(folder, version)
    distances = await compare(learner, policy, probes)
    mean, largest = float(distances.mean()), float(distances.max())
    if not mean <= tolerance:  # NaN is not below it either
        raise PublishError(
            f"version {version}: mean |log p(learner) - log p(engine)| is {mean:.4f} on {distances.size} probe tokens, "
            f"above policy.publish_tolerance = {tolerance}; the engine does not hold the learner's weights ({folder})"
        )
    return {
        "publish/delta_mean": mean,
        "publish/delta_max": largest,
        "publish/seconds": time.monotonic() - started,
        "publish/version": float(version),
    }


async def compare(learner: Learner, policy: Policy, probes: Sequence[Sequence[int]]) -> np.ndarray:
    """|log p(learner) - log p(engine)| of every token but the first of each probe, in one array."""
    if not any(len(probe) > 1 for probe in probes):
        raise ValueError("nothing to compare on: give at least one probe of two tokens")
    theirs = await asyncio.gather(*(policy.logprobs(probe) for probe in probes))
    ours = await asyncio.to_thread(learner.logprobs, [as_sample(probe) for probe in probes])
    return np.concatenate([np.abs(mine - other)[1:] for mine, other in zip(ours, theirs, strict=True)])


def as_sample(ids: Sequence[int]) -> Sample:
    """A row to be scored: every token but the first."""
    mask_T = np.arange(len(ids)) > 0
    zeros_T = np.zeros(len(ids), np.float32)
    return Sample("probe", "probe", np.array(ids, np.int64), mask_T, zeros_T, zeros_T)
