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
    learner: Learner, policy: Policy, folder: Path, version: int, *, probes: Sequence[Sample], tolerance: float
) -> dict[str, float]:
    """Export, load and compare log-probs on the masked tokens of probes; PublishError when their mean distance is above the tolerance."""
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


async def compare(learner: Learner, policy: Policy, probes: Sequence[Sample]) -> np.ndarray:
    """|log p(learner) - log p(engine)| of the masked tokens of the probes, in one array.

    Tokens of prompts and observations do not count: no one sampled them, many are improbable, and there the rounding of bfloat16
    alone is large (mean .22 after fine-tuning, against .007 on sampled tokens; docs/LOG.md).
    """
    masks = [probe.mask_T & (np.arange(len(probe.ids_T)) > 0) for probe in probes]
    if not any(mask_T.any() for mask_T in masks):
        raise ValueError("nothing to compare on: give at least one probe with a masked token after its first")
    theirs = await asyncio.gather(*(policy.logprobs(probe.ids_T.tolist()) for probe in probes))
    ours = await asyncio.to_thread(learner.logprobs, list(probes))
    return np.concatenate([np.abs(mine - other)[mask_T] for mine, other, mask_T in zip(ours, theirs, masks, strict=True)])


def as_sample(ids: Sequence[int]) -> Sample:
    """A row to be scored: every token but the first."""
    mask_T = np.arange(len(ids)) > 0
    zeros_T = np.zeros(len(ids), np.float32)
    return Sample("probe", "probe", np.array(ids, np.int64), mask_T, zeros_T, zeros_T)
