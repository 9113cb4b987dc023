"""Learner weights -> policy, and the proof that they have arrived; knows the two seams, nothing of engines or ranks.

Two checks, because each is blind to what the other sees. Digests, of what the learner sent and of what the engine's layers hold, are
equal bit by bit, or a weight did not arrive. Log-probs of sampled tokens are nearly equal, or the two compute differently with them.
"""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .types import Learner, Policy, Sample
from .weights import describe_difference

SHARED_MEMORY = Path("/dev/shm")


class PublishError(Exception):
    """The policy does not hold the learner's weights: the run stops, or it would train on another model's samples."""


async def publish(
    learner: Learner, policy: Policy, folder: Path, version: int, *, probes: Sequence[Sample], tolerance: float
) -> dict[str, float]:
    """Export through `folder`, load, compare digests, and log-probs on the masked tokens of probes.

    PublishError when a digest differs, or when the mean distance of log-probs is above the tolerance.
    """
    started = time.monotonic()
    sent = await asyncio.to_thread(learner.export, folder, whole=False)
    held = await policy.load(folder, version)
    if difference := describe_difference(sent, held):
        raise PublishError(f"version {version}: the engine does not hold the learner's weights: {difference} ({folder})")
    seconds = time.monotonic() - started
    distances = await compare(learner, policy, probes)
    mean, largest = float(distances.mean()), float(distances.max())
    if not mean <= tolerance:  # NaN is not below it either
        raise PublishError(
            f"version {version}: mean |log p(learner) - log p(engine)| is {mean:.4f} on {distances.size} probe tokens, "
            f"above policy.publish_tolerance = {tolerance}: the engine does not hold the learner's weights. Or it does (each digest "
            f"agrees) and computes differently: at unsure tokens (mean log p here {_mean_logprob(probes):.1f}) the rounding of "
            "policy.dtype alone may be so large; choose float32, or a larger tolerance"
        )
    return {
        "publish/delta_mean": mean,
        "publish/delta_max": largest,
        "publish/seconds": seconds,
        "publish/weights": float(len(held)),
        "publish/version": float(version),
    }


@contextmanager
def passing_folder(run: Path, size: int, *, shared: bool = True) -> Iterator[Path]:
    """Where weights of `size` bytes pass from learner to engine, gone afterwards: shared memory with twice the room, else the run.

    The name is the run's, so that what a kill left there is replaced by the next publish.
    """
    name = hashlib.blake2b(str(run.absolute()).encode(), digest_size=8).hexdigest()
    roomy = shared and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    folder = SHARED_MEMORY / f"greengrad-weights-{os.getuid()}-{name}" if roomy else run / "passing"
    try:
        yield folder
    finally:
        for one in (folder, folder.with_name(folder.name + ".partial")):
            shutil.rmtree(one, ignore_errors=True)


def measure_weights(folder: Path) -> int:
    """Bytes of a model folder's safetensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


async def compare(learner: Learner, policy: Policy, probes: Sequence[Sample]) -> np.ndarray:
    """|log p(learner) - log p(engine)| of the masked tokens of the probes, in one array.

    Tokens of prompts and observations do not count: no one sampled them, many are improbable, and there the rounding of bfloat16
    alone is large (mean .22 after fine-tuning, against .007 on sampled tokens; docs/LOG.md).
    """
    masks = [probe.mask_T & (np.arange(len(probe.ids_T)) > 0) for probe in probes]
    if not any(mask_T.any() for mask_T in masks):
        raise ValueError("nothing to compare on: give at least one probe with a masked token after its first")
    theirs = await asyncio.gather(*(policy.logprobs(probe.ids_T.tolist(), mask_T) for probe, mask_T in zip(probes, masks, strict=True)))
    ours = await asyncio.to_thread(learner.logprobs, list(probes))
    return np.concatenate([np.abs(mine - other)[mask_T] for mine, other, mask_T in zip(ours, theirs, masks, strict=True)])


def _mean_logprob(probes: Sequence[Sample]) -> float:
    """As the engine gave it when it sampled."""
    return float(np.concatenate([probe.logprobs_T[probe.mask_T] for probe in probes]).mean())


def as_sample(ids: Sequence[int]) -> Sample:
    """A row to be scored: every token but the first."""
    mask_T = np.arange(len(ids)) > 0
    zeros_T = np.zeros(len(ids), np.float32)
    return Sample("probe", "probe", np.array(ids, np.int64), mask_T, zeros_T, zeros_T)
