"""Puts the parts together: a configuration -> machines, graders, engine and learner, opened together and closed together.

Knows every part by its face and none by its insides. rollout, eval, train and the quickstart all open their world here.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from sandbox import Pool, diff, open_backend
from tasks import Task, grade, load_suite

from .commands import LearnerSetup
from .config import Config, RolloutConfig, SandboxConfig, TasksConfig
from .learner import DeepSpeedLearner
from .policy import start_policy
from .prompt import Chat, load_chat
from .rollout import Rig
from .train import World

SPARE_SECONDS = 120.0
"""A machine lives this much longer than its episode, so that the diff can still be taken."""


@asynccontextmanager
async def open_rig(sandbox: SandboxConfig, rollout: RolloutConfig, chat: Chat, context: int) -> AsyncIterator[Rig]:
    """Machines and graders: what an episode is made with, whoever acts."""
    limits = replace(sandbox.limits, episode_seconds=sandbox.episode_seconds + SPARE_SECONDS)
    backend = open_backend(sandbox.backend)
    acting = Pool(backend, limits, sandbox.concurrency, ahead=1)
    grading = Pool(backend, limits, sandbox.concurrency, ahead=1)
    async with acting as machines, grading as graders:
        yield Rig(
            chat=chat,
            machines=machines,
            diff=diff,
            grade=partial(grade, graders, limits=limits),
            rollout=rollout,
            context=context,
            command_seconds=sandbox.command_seconds,
            episode_seconds=sandbox.episode_seconds,
        )


def choose_split(config: TasksConfig) -> Sequence[Task]:
    """The tasks of a configuration; ValueError where there are none, because a run without tasks would do nothing."""
    suite = load_suite(config.suite)
    tasks = [task for task in suite.tasks if task.split == config.split][: config.limit]
    if not tasks:
        raise ValueError(f"{config.suite}: no task of split {config.split!r}; it has {sorted({task.split for task in suite.tasks})}")
    return tasks


def setup_learner(config: Config, run: Path) -> LearnerSetup:
    """What the learner's ranks need for reinforcement learning."""
    if config.model is None:
        raise ValueError("model.path is missing: training needs one")
    return LearnerSetup(
        config.model.path, config.learner, config.optim, config.loss, logs=run / "logs", temperature=config.rollout.temperature
    )


@asynccontextmanager
async def open_world(config: Config, run: Path) -> AsyncIterator[World]:
    """Everything that a training run acts on; closed in reverse order, whatever happens."""
    setup = setup_learner(config, run)
    tasks = choose_split(config.tasks)
    chat = load_chat(setup.model_folder, config.rollout.action_format)
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(open_rig(config.sandbox, config.rollout, chat, config.model.context if config.model else 0))
        policy = await start_policy(config, chat.template, run / "logs" / "vllm.log")
        stack.push_async_callback(policy.close)
        learner = DeepSpeedLearner(setup)
        stack.callback(learner.close)
        yield World(policy, learner, rig, tasks)
