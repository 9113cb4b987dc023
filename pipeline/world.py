"""Puts the parts together: a configuration -> machines, graders, engine and learner, opened together and closed together.

Knows every part by its face and none by its insides. rollout, eval, train and the quickstart all open their world here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from sandbox import Pool, diff
from tasks import Auditor, Task, grade

from .actor import Prepared, choose_tasks, open_chat, open_machines, prepare_machines
from .config import Config, PolicyConfig, RolloutConfig
from .engines import Engines, start_engines
from .held_out import choose_held_out
from .jury import open_jury
from .learner import DeepSpeedLearner, check_setup
from .orders import LearnerSetup, Transfer
from .peak import make_yardstick
from .policy import VllmPolicy
from .prompt import Chat
from .reward import open_channel
from .rollout import Rig
from .train import World
from .types import Policy
from .user import open_user

SPARE_SECONDS = 120.0
"""A machine lives this much longer than its episode, so that the diff can still be taken."""


@asynccontextmanager
async def open_rig(config: Config, rollout: RolloutConfig, chat: Chat, context: int) -> AsyncIterator[Rig]:
    """Machines and graders: what an episode is made with, whoever acts."""
    sandbox = config.sandbox
    limits = replace(sandbox.limits, episode_seconds=sandbox.episode_seconds + SPARE_SECONDS)
    waiting = sandbox.episode_seconds * rollout.max_turns * rollout.continuations  # for what goes on from its turns, if one by one
    waiting += rollout.max_turns * config.user.longest_wait if config.user else 0.0
    backend = open_machines(sandbox)
    acting = Pool(
        backend, replace(limits, episode_seconds=limits.episode_seconds + waiting), sandbox.concurrency, ahead=1, reuse=sandbox.reuse
    )
    forking = Pool(backend, limits, sandbox.concurrency, reuse=sandbox.reuse)
    grading = Pool(backend, limits, sandbox.concurrency, ahead=1)
    async with acting as machines, forking as forks, grading as graders, open_user(config.user) as user:
        yield Rig(
            chat=chat,
            machines=machines,
            diff=diff,
            grade=partial(grade, graders, limits=limits, auditor=Auditor(config.tasks.audit)),
            rollout=rollout,
            context=context,
            command_seconds=sandbox.command_seconds,
            episode_seconds=sandbox.episode_seconds,
            forks=forks,
            sees_end=config.reward.kind == "visible_tests",
            user=user,
        )


def setup_learner(config: Config, run: Path, total_steps: int = 0) -> LearnerSetup:
    """What the learner's ranks need; total_steps is where a cosine schedule ends."""
    if config.model is None:
        raise ValueError("model.path is missing: training needs one")
    if config.optim.schedule == "cosine" and not total_steps:
        raise ValueError("optim.schedule: cosine needs a known number of optimiser steps; fine-tuning sets it by itself, RL needs constant")
    return LearnerSetup(
        config.model.path,
        config.learner,
        config.optim,
        config.loss,
        run / "logs",
        temperature=config.rollout.temperature,
        rope_yarn=config.model.rope_yarn,
        total_steps=total_steps,
        export_dtype=config.policy.dtype,
    )


def choose_run_tasks(config: Config) -> tuple[list[Task], list[Task]]:
    """Those to train on and those held out; ValueError where one is both."""
    chosen, apart = choose_tasks(config.tasks, config.tasks.split), choose_held_out(config)
    held_out = {task.instance_id for task in apart}
    if both := sorted(held_out & {task.instance_id for task in chosen}):
        raise ValueError(
            f"{config.tasks.suite}: {both[0]} is in {config.tasks.split} and in {config.train.eval_split}: nothing is held out"
        )
    return chosen, apart


def split_usable(config: Config, prepared: Prepared, apart: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Those to train on and those held out, as far as they may be attempted; ValueError where there is none of one kind."""
    held_out = {task.instance_id for task in apart}
    train, test = ([task for task in prepared.usable() if (task.instance_id in held_out) is kind] for kind in (False, True))
    if not train or (apart and not test):
        raise ValueError(f"{config.tasks.suite}: {len(train)} tasks to train on and {len(test)} held out may be attempted: too few")
    return train, test


async def prepare_tasks(config: Config, run: Path) -> tuple[list[Task], list[Task]]:
    """Those to train on and those held out, with machines for them on this host."""
    chosen, apart = choose_run_tasks(config)
    return split_usable(config, await prepare_machines(config.sandbox, config.tasks.suite, [*chosen, *apart], run), apart)


def find_transfer(config: PolicyConfig, policy: Policy) -> Transfer | None:
    """The way from the learner's ranks to the engine; None: through a folder."""
    if config.transfer == "folder" or not isinstance(policy, VllmPolicy):
        return None
    return Transfer(config.transfer, policy.url, config.tensor_parallel)


def find_rest(config: PolicyConfig, policy: Policy) -> Callable[[], AbstractAsyncContextManager[None]]:
    """What the engine does while the learner takes its step."""
    return policy.asleep if config.sleep and isinstance(policy, VllmPolicy | Engines) else nullcontext


@asynccontextmanager
async def open_world(config: Config, run: Path, served: Policy | None = None) -> AsyncIterator[World]:
    """Everything that a training run acts on; closed in reverse order, whatever happens. `served`: a policy that runs already and stays."""
    setup = setup_learner(config, run)
    check_setup(setup)  # before minutes of preparing machines and starting an engine
    tasks, held_out = await prepare_tasks(config, run)
    chat = open_chat(config)
    context = config.model.context if config.model else 0
    async with (
        open_rig(config, config.rollout, chat, context) as rig,
        open_channel(config.reward, config.train.seed) as channel,
        open_jury(config.hindsight) as jury,
        open_parts(config, run, setup, replace(rig, channel=channel, jury=jury), tasks, held_out, served) as world,
    ):
        yield world


@asynccontextmanager
async def open_parts(
    config: Config,
    run: Path,
    setup: LearnerSetup,
    rig: Rig,
    tasks: Sequence[Task],
    held_out: Sequence[Task] = (),
    served: Policy | None = None,
) -> AsyncIterator[World]:
    """An engine (or `served`) and a learner around a rig that is open."""
    async with AsyncExitStack() as stack:
        policy = served or await start_engines(config, rig.chat.template, run / "logs" / "vllm.log")
        if served is None:
            stack.push_async_callback(policy.close)
        rest = find_rest(config.policy, policy)
        async with rest():
            learner = await asyncio.to_thread(DeepSpeedLearner, replace(setup, transfer=find_transfer(config.policy, policy)))
        stack.callback(learner.close)
        yield World(policy, learner, rig, tasks, held_out, make_yardstick(config), rest)
