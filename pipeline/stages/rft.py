"""Rejection fine-tuning: passing episodes -> samples -> epochs of cross-entropy (arXiv:2508.03501, section 3); knows no model.

A turn that was malformed stays in the context and carries no loss; RL, by contrast, masks nothing by format. A demonstration that stood
in the prompt when an episode was collected (rollout.demonstration) is not in the prompt that is trained on. Episodes whose actions are
the same count once. Episodes that another model's template wrote, or someone else's scaffold (imports.py), are told anew in the model's.
A run that was killed goes on after its last whole epoch.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tasks import Task

from ..actor import choose_tasks, open_chat
from ..batch import merge_turns
from ..config import Config, LossConfig, OptimConfig, RftConfig
from ..journal import Journal
from ..learner import DeepSpeedLearner
from ..prefix import retell
from ..progress import progress
from ..prompt import Chat
from ..sinks import open_sinks
from ..train import find_checkpoint, prune_checkpoints, save_checkpoint
from ..types import Batch, Episode, Learner, Sample, Stop
from ..world import setup_learner

log = logging.getLogger(__name__)


class FineTuner(Learner, Protocol):
    """A learner that also takes demonstrations."""

    def fine_tune(self, batch: Batch) -> dict[str, float]:
        """Cross-entropy on the masked tokens, one optimiser step for each optim.batch_episodes samples."""
        ...


def rft_samples(episodes: Iterable[Episode]) -> tuple[Sample, ...]:
    """The resolved episodes (but those whose user drifted), loss on their well-formed turns only; advantages are 1 on those tokens."""
    samples: list[Sample] = []
    for episode in episodes:
        if episode.stop is Stop.INFRA or episode.reward != 1.0 or episode.drifted:
            continue
        well_formed_N = np.array([turn.call is not None for turn in episode.turns], dtype=bool)
        samples += merge_turns(episode, np.ones(len(episode.turns)), well_formed_N)
    return tuple(samples)


def choose_demonstrations(episodes: Iterable[Episode], per_task: int | None = None) -> Iterator[Episode]:
    """The resolved episodes in their order, none whose user drifted, each sequence of actions once, of one task at most `per_task`."""
    seen: set[bytes] = set()
    count = Counter[str]()
    for episode in episodes:
        actions = digest_actions(episode)
        if (
            episode.stop is Stop.INFRA
            or episode.reward != 1.0
            or episode.drifted
            or actions in seen
            or count[episode.instance_id] == per_task
        ):
            continue
        seen.add(actions)
        count[episode.instance_id] += 1
        yield episode


def digest_actions(episode: Episode) -> bytes:
    """The same for the same actions on the same task."""
    actions = [(turn.call.name, *sorted(turn.call.arguments.items())) for turn in episode.turns if turn.call]
    return hashlib.blake2b(repr((episode.instance_id, actions)).encode("utf-8", "surrogatepass")).digest()


def tell_plainly(episode: Episode, chat: Chat, task: Task) -> Episode:
    """The episode with the prompts that the model will see: without a demonstration, in its own template."""
    turns = episode.played
    start = len(turns[0].prompt) if turns else 0
    if episode.plain_start:
        turns = tuple(replace(turn, prompt=episode.plain_start + turn.prompt[start:]) for turn in turns)
    told, known = retell(chat, task, turns), len(episode.prefix)
    return replace(episode, prefix=told[:known], turns=told[known:])


def load_demonstrations(config: Config, rft: RftConfig, folder: Path) -> Iterator[Episode]:
    """Those of a run on the tasks of the configuration, ready to be trained on, one at a time; ValueError in the end if there was none."""
    of_task = {task.instance_id: task for task in choose_tasks(config.tasks, config.tasks.split)}
    chat = open_chat(config.model_copy(update={"rollout": config.rollout.model_copy(update={"demonstration": None})}))
    known = others = 0
    with Journal(folder, readonly=True) as journal:
        for one in choose_demonstrations(journal.episodes(), rft.per_task):
            if one.instance_id in of_task:
                known += 1
                yield tell_plainly(one, chat, of_task[one.instance_id])
            else:
                others += 1
    if not known:
        other = f" (of its {others} resolved ones none is of a task of {config.tasks.suite}, {config.tasks.split})" if others else ""
        raise ValueError(f"{folder}: holds no resolved episode to learn from{other}")
    log.info("%d episodes to learn from; %d more are of other tasks", known, others)


def rft_optim(optim: OptimConfig, rft: RftConfig) -> OptimConfig:
    """The optimiser's settings for this stage: its own rate, warm-up and batch, a cosine to 0."""
    stage = {"lr": rft.lr, "warmup_steps": rft.warmup_steps, "batch_episodes": rft.batch_episodes, "schedule": "cosine"}
    return optim.model_copy(update=stage)


def count_steps(samples: int, rft: RftConfig) -> int:
    """Optimiser steps of the whole stage."""
    return rft.epochs * math.ceil(samples / rft.batch_episodes)


def tune_on(config: Config, rft: RftConfig, demonstrations: Path, run: Path) -> None:
    """The whole stage: the passing episodes of one run folder -> RUN/model."""
    samples = rft_samples(load_demonstrations(config, rft, demonstrations))
    if not samples:
        raise ValueError(f"{demonstrations}: none of its resolved episodes has a turn to learn from")
    tune(config, rft, samples, run)


def tune(config: Config, rft: RftConfig, samples: Sequence[Sample], run: Path) -> None:
    """Epochs of cross-entropy on samples, those that are left -> RUN/model."""
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
