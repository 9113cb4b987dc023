"""What the stages share whose tasks are prompts: the policy answers each once, and the answer is scored; no sandbox, no grade.

Knows neither what a prompt says nor how an answer is scored. An answer is an episode of one turn, so that the rest is the loop of train.py.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tenacity import RetryCallState

from tasks import Outcome, Task, Verdict

from ..config import Config
from ..learner import DeepSpeedLearner, check_setup
from ..prompt import Chat
from ..rig import Rig, Slot, derive_seed, remote_rig
from ..rollout import retry
from ..train import World, find_checkpoint
from ..types import Completion, ContextFull, Episode, Policy, PolicyError, Scored, Stop, Turn
from ..world import open_parts, setup_learner

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and how its answer is read."""

    task: Task
    ids: tuple[int, ...]
    read: Callable[[Completion], tuple[Turn, Scored]]


async def answer_once(policy: Policy, prompt: Prompt, rig: Rig, slot: Slot) -> Episode:
    """An episode of one turn; INFRA where the engine failed, also when it was asked again rollout.infra_retries times."""
    failed = list[RetryCallState]()
    rig.diary.issue(slot.episode_id, slot.group_id, prompt.task.instance_id, slot.step)
    episode = Episode(slot.episode_id, slot.group_id, prompt.task.instance_id, (), Stop.STEP, "", None)
    try:
        completion, seconds = await retry(rig, failed.append, partial(ask, policy, prompt, rig, slot))
    except (PolicyError, ContextFull) as failure:
        why = f"{type(failure).__name__}: {failure}"
        verdict = Verdict(prompt.task.instance_id, Outcome.INFRA, why)
        return replace(episode, stop=Stop.INFRA, verdict=verdict, error=why, retries=len(failed))
    turn, scored = prompt.read(completion)
    return replace(episode, turns=(replace(turn, seconds_model=seconds),), seconds=seconds, scored=scored, retries=len(failed))


async def ask(policy: Policy, prompt: Prompt, rig: Rig, slot: Slot) -> tuple[Completion, float]:
    """The policy's answer to a prompt, and the seconds that it took."""
    started = time.monotonic()
    completion = await policy.sample(prompt.ids, rig.rollout.max_new_tokens, derive_seed(slot, 0))
    return completion, time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Prompts:
    """Who plays the episodes (rig.Elsewhere): the policy answers its prompt once; there is no machine."""

    of_name: Mapping[str, Prompt]

    async def __call__(self, policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
        """An episode of one turn."""
        return await answer_once(policy, self.of_name[task.instance_id], rig, slot)


@asynccontextmanager
async def open_prompts(config: Config, run: Path, chat: Chat, prompts: Sequence[Prompt]) -> AsyncIterator[World]:
    """What such a stage acts on: an engine, a learner and prompts."""
    setup = setup_learner(config, run)
    check_setup(setup)
    play = Prompts({one.task.instance_id: one for one in prompts})
    rig = remote_rig(chat, config.rollout, config.model.context if config.model else 0, play)
    async with open_parts(config, run, setup, rig, [one.task for one in prompts]) as world:
        yield world


def export_exactly(config: Config, run: Path, next_step: int) -> None:
    """The newest checkpoint as `run`/model in float32: what comes next may take steps that the engine's dtype would swallow."""
    saved = find_checkpoint(run, next_step)
    if saved is None and config.train.steps:
        log.warning("%s: no batch of prompts whose rewards differ was found: the model is the one that it started from", run)
    learner = DeepSpeedLearner(replace(setup_learner(config, run), export_dtype="float32"))
    try:
        if saved is not None:
            learner.restore(saved)
        learner.export(run / "model")
    finally:
        learner.close()
