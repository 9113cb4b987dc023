"""The learner as its owner sees it: samples are laid out and sent to the ranks, answers are put together; knows no torch, no DeepSpeed.

Knows samples and how they are weighed, nothing of episodes, rewards or the engine that samples. What a rank does is in rank.py.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .batch import weigh_samples
from .lora import check_targets
from .model_folder import read_entries, refuse_experts, refuse_heads, stretch
from .orders import (
    Command,
    Export,
    LearnerSetup,
    Objective,
    Restore,
    Save,
    Score,
    Send,
    Train,
    TrainReport,
    split_minibatches,
    summarise_steps,
)
from .packs import NOTHING_FIXED, FixedLogprobs, MicroBatch, Room, count_tokens, pack_samples
from .rank import serve_rank
from .ranks import Crew, Ranks
from .types import Batch, Likeliest, Sample
from .weights import Digests, check_layout, read_layout

log = logging.getLogger(__name__)


class DeepSpeedLearner:
    """The Learner of types.py over `setup.learner.ranks` processes. A rank that fails raises RankError with its traceback."""

    def __init__(self, setup: LearnerSetup, crew: Crew | None = None) -> None:
        """crew: ranks that are being started elsewhere with the same setup; None: processes of this machine."""
        check_setup(setup)
        self.setup = setup
        self.steps = 0
        """Optimiser steps done."""
        self._ranks = crew or Ranks(serve_rank, setup, setup.learner.ranks, setup.logs)
        if why_alone := self._ranks.answers("start", setup.start_seconds)[0]:
            if setup.learner.sequence_parallel > 1:
                self.close()
                raise ValueError(f"learner.sequence_parallel cannot share out this model: {why_alone}; use 1")
            log.warning("each sample is computed alone, shared beginnings again and again: %s", why_alone)
            self.setup = replace(setup, alone=True)

    def step(self, batch: Batch) -> dict[str, float]:
        """One pass of the clipped policy objective over the batch: ceil(samples / optim.batch_episodes) optimiser steps.

        pi_old: with one optimiser step the current weights are pi_old, so the ratio is exactly 1 and nothing is computed twice;
        with more, the learner scores all samples first (old_logprobs "learner") or takes the engine's numbers ("engine").
        """
        old: list[np.ndarray] | None = None
        if self.setup.loss.old_logprobs == "engine":
            old = [sample.logprobs_T for sample in batch.samples]
        elif len(batch.samples) > self.setup.optim.batch_episodes:
            old = self._score(batch.samples)
        reference = self._score(batch.samples, reference=True) if self.setup.loss.kl_coef else None
        return self._train(batch.samples, "policy", FixedLogprobs(old, reference))

    def fine_tune(self, batch: Batch) -> dict[str, float]:
        """One pass of cross-entropy on the masked tokens, at temperature 1."""
        return self._train(batch.samples, "fine_tune", NOTHING_FIXED)

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """log p of each token under the current weights, shape (T,) each, 0 at t = 0; at the sampling temperature."""
        return self._score([replace(sample, mask_T=np.ones_like(sample.mask_T)) for sample in samples])

    def entropies(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The entropy, in nats, at each token that carries loss, shape (T,) each, 0 elsewhere; at the sampling temperature."""
        return self._score(samples, entropy=True)

    def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
        """The `count` likeliest tokens (at most all) at each token that carries loss, under the current weights, as they are sampled."""
        found: list[Likeliest | None] = [None] * len(samples)
        for micro, reply in self._ask(samples, Score((), likeliest=count)):
            for sequence, row in enumerate(micro.rows):
                mine = micro.sequences_M == sequence
                if row >= 0:
                    found[row] = Likeliest(reply.ids_HK[mine], reply.logprobs_HK[mine])
        return [one for one in found if one is not None]

    def export(self, folder: Path, *, whole: bool = True) -> Digests:
        """Write a model folder that transformers and vLLM load, in one move; an older one of that name is replaced.

        Returns the digest of each weight that an engine must hold then. ValueError where the folder could not stand in for the model's
        own. Not `whole`: what an engine needs that started from the same model, adapters alone with lora.publish: adapters; with
        policy.transfer nothing is written, and the weights are in the engine when this returns.
        """
        lora = self.setup.learner.lora
        if self.setup.transfer and not whole:
            return dict(self._call_all(Send())[0])
        adapters = not whole and lora is not None and lora.publish == "adapters"
        with replaced_folder(folder) as partial:
            digests: Digests = self._call_all(Export(partial, adapters))[0]
            if not adapters:
                check_layout(self.setup.model_folder, read_layout(partial))
        return digests

    def save(self, folder: Path) -> None:
        """Write a checkpoint (weights, optimiser, step count) in one move: a kill leaves the old one or the new one."""
        with replaced_folder(folder) as partial:
            self._call_all(Save(partial))

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint of the same ZeRO stage, whatever the number of ranks that wrote it."""
        if not folder.is_dir():
            raise FileNotFoundError(f"no checkpoint at {folder}")
        self.steps = self._call_all(Restore(folder.absolute()))[0]

    def close(self) -> None:
        """Stop the ranks; safe to call twice."""
        self._ranks.close()

    def _train(self, samples: Sequence[Sample], objective: Objective, fixed: FixedLogprobs) -> dict[str, float]:
        if not samples:
            raise ValueError("a batch without samples carries no signal: skip the step")
        shares = share_out(self.setup, samples, objective, fixed, self.steps)
        replies: list[TrainReport] = self._call_groups([Train(tuple(share), objective) for share in shares])
        self.steps += len(shares[0])
        computed = sum(count_tokens(share) for share in shares)
        return summarise_steps(replies, objective, self.setup.learner.sequence_parallel) | {"optim/computed_tokens": float(computed)}

    def _score(self, samples: Sequence[Sample], *, reference: bool = False, entropy: bool = False) -> list[np.ndarray]:
        """log p of the masked tokens, or the entropy there, shape (T,) each, 0 elsewhere."""
        scores = [np.zeros(len(sample.ids_T), dtype=np.float32) for sample in samples]
        for micro, scores_M in self._ask(samples, Score((), reference, entropy)):
            for sequence, row in enumerate(micro.rows):
                mine = micro.sequences_M == sequence
                if row >= 0:
                    scores[row][micro.tokens_M[mine]] = scores_M[mine]
        return scores

    def _ask(self, samples: Sequence[Sample], command: Score) -> Iterator[tuple[MicroBatch, Any]]:
        """The samples' micro-batches, and what the ranks answer of each."""
        packs = pack_samples(samples, room_of(self.setup))
        replies = self._call_groups([replace(command, packs=tuple(pack)) for pack in packs])[:: self.setup.learner.sequence_parallel]
        for pack, reply in zip(packs, replies, strict=True):
            yield from zip(pack, reply, strict=True)

    def _call_groups(self, commands: Sequence[Command]) -> list[Any]:
        """One command for each group of ranks that share sequences (without sequence parallelism: each rank); the answers of all ranks."""
        return self._ranks.call([one for one in commands for _ in range(self.setup.learner.sequence_parallel)], self.setup.command_seconds)

    def _call_all(self, command: Command) -> list[Any]:
        return self._ranks.call([command] * self.setup.learner.ranks, self.setup.command_seconds)


def share_out(
    setup: LearnerSetup, samples: Sequence[Sample], objective: Objective, fixed: FixedLogprobs, steps: int
) -> list[list[tuple[MicroBatch, ...]]]:
    """Per group of ranks (LearnerConfig.groups) and optimiser step its micro-batches; `steps`: those done before decide the shuffle."""
    learner, loss = setup.learner, setup.loss
    shares: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(learner.groups)]
    for part in split_minibatches([sample.group_id for sample in samples], setup.optim.batch_episodes, (learner.seed, steps)):
        chosen = [samples[index] for index in part]
        weights_S = weigh_samples(chosen, loss.aggregation if objective == "policy" else "token", loss.constant_tokens)
        packs = pack_samples(chosen, room_of(setup), weights_S, fixed.of(part))
        for share, pack in zip(shares, packs, strict=True):
            share.append(tuple(pack))
    return shares


def room_of(setup: LearnerSetup) -> Room:
    """How samples are laid out: side by side in packs that share, or each in one of its own."""
    learner = setup.learner
    return Room(0, learner.groups, share=False) if setup.alone else Room(learner.micro_tokens, learner.groups, learner.share_prefixes)


def check_setup(setup: LearnerSetup) -> None:
    """What would otherwise fail minutes later, inside a rank."""
    entries = read_entries(setup.model_folder)
    refuse_experts(entries)
    stretch(setup.model_folder, setup.rope_yarn)
    if setup.learner.sequence_parallel > 1:
        refuse_heads(entries, setup.learner.sequence_parallel)
    if setup.learner.dtype == "bfloat16" and setup.learner.zero_stage == 0:
        raise ValueError("learner.zero_stage: 0 keeps no fp32 masters beside bfloat16 weights; use 1, 2 or 3, or dtype float32")
    if setup.learner.lora:
        check_targets(setup.model_folder, setup.learner.lora)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends without an error."""
    folder = folder.absolute()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
