"""Who acts in `eval` and `rollout`, and on which tasks: a script, or the served model; knows no algorithm and no learner."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sandbox import Backend, open_backend
from tasks import Filter, Suite, Task, choose, load_suite, prepare_suite, repository, seal_tasks

from .chat_policy import start_chat_policy
from .collect import deal
from .config import Config, RolloutConfig, SandboxConfig, TasksConfig
from .curriculum import leave_out, read_records
from .demonstration import load_demonstration
from .engines import start_engines
from .evaluate import Actor
from .expert import make_expert
from .gather import gather
from .manifest import record_images
from .prompt import ByteTemplate, Chat, load_chat
from .served import list_served
from .types import Policy

log = logging.getLogger(__name__)
NO_LIMIT = 1 << 24
"""Tokens, where no model counts them."""
IMAGES_AT_ONCE = 4
"""Images that are built or fetched at one time."""


def open_chat(config: Config) -> Chat:
    """The model's own chat template; bytes where a script acts, or a server that takes text."""
    plain = replace(_load_chat(config), user=config.user)
    if config.rollout.demonstration is None:
        return plain
    limits, context = token_limits(config)
    room = NO_LIMIT if context == NO_LIMIT else context - limits.max_new_tokens

    def fits(task: Task, text: str) -> bool:
        return len(replace(plain, demonstrate=lambda _: text).start_prompt(task)) <= room

    return replace(plain, demonstrate=load_demonstration(config.rollout.demonstration, fits))


def _load_chat(config: Config) -> Chat:
    action_format = config.rollout.action_format
    if config.model is None or config.policy.api == "chat":
        return Chat(ByteTemplate(), action_format)
    try:
        return load_chat(config.model.path, action_format)
    except OSError as error:
        if config.model.path.exists():
            raise
        why = str(error).splitlines()[0]
        raise FileNotFoundError(f"model.path = {config.model.path}: no such folder, and no such model can be fetched ({why})") from None


def actor_name(config: Config) -> str:
    """What results and predictions call who acts: the script, or the model."""
    if config.rollout.policy != "model":
        return config.rollout.policy
    return config.policy.model or (config.model.path.name if config.model else "model")


def check_actor(config: Config) -> None:
    """A script or a demonstration that cannot be read, or a model that is nowhere, is refused before a run folder is made for it."""
    check_asked(config)
    if config.rollout.demonstration is not None:
        load_demonstration(config.rollout.demonstration)
    if config.rollout.policy != "model":
        make_expert(config.rollout.policy, Chat(ByteTemplate(), user=config.user))
    elif config.model is not None and not config.model.path.exists():
        open_chat(config)


def check_asked(config: Config) -> None:
    """FileNotFoundError where a model that is asked, as judge or as user, is to be served here and has no folder."""
    for key, path in list_served(config).items():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{key}.path: {path} holds no config.json; the folder of a model is needed, for vLLM to serve")


def check_demonstration(config: Config, tasks: Sequence[Task]) -> None:
    """ValueError where a demonstration fits into no task's prompt; a warning where some tasks are attempted without."""
    if config.rollout.demonstration is None:
        return
    chat = open_chat(config)
    without = [task.instance_id for task in tasks if chat.demonstrate is not None and not chat.demonstrate(task)]
    told = f"leaves room in model.context for rollout.max_new_tokens = {config.rollout.max_new_tokens}"
    if len(without) == len(tasks):
        raise ValueError(f"rollout.demonstration: {config.rollout.demonstration} {told} in the prompt of no task")
    if without:
        log.warning(
            "rollout.demonstration: none %s in %d of %d tasks (%s ...): they go without", told, len(without), len(tasks), without[0]
        )


def token_limits(config: Config) -> tuple[RolloutConfig, int]:
    """Settings of the turns, and the context; without a model there are no tokens to limit, and a chat server limits its own."""
    if config.policy.api == "chat" and config.rollout.policy == "model":
        return config.rollout, NO_LIMIT
    if config.model is None:
        return config.rollout.model_copy(update={"max_new_tokens": NO_LIMIT}), NO_LIMIT
    return config.rollout, config.model.context


def choose_tasks(tasks: TasksConfig, split: str | None) -> list[Task]:
    """The tasks of a suite, of a split (None: of all), as many as tasks.limit; ValueError when one of the suite cannot be read."""
    suite = load_suite(tasks.suite)
    if suite.broken:
        name, what = next(iter(suite.broken.items()))
        count = f"{len(suite.broken)} of its tasks cannot" if len(suite.broken) > 1 else "a task cannot"
        raise ValueError(f"{tasks.suite}: {count} be read: {name}: {what}")
    if not suite.tasks:
        raise ValueError(f"{tasks.suite}: holds no tasks")
    of_split = [task for task in suite.tasks if split in (None, task.split)]
    if not of_split:
        splits = ", ".join(sorted({task.split for task in suite.tasks})) or "none"
        raise ValueError(f"{tasks.suite}: no tasks of split {split!r} (splits there: {splits})")
    counts = Counter(task.instance_id for task in of_split)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{tasks.suite}: {twice[0]} is in more than one split: choose one of them")
    chosen, dropped = choose(of_split, task_filter(tasks))
    if tasks.history:
        chosen, by_rate = leave_out(chosen, read_records(tasks.history))
        dropped += by_rate
    told = ", ".join(f"{count} by {reason}" for reason, count in dropped.items())
    if not chosen:
        raise ValueError(f"{tasks.suite}: the filters of `tasks` leave no task ({told})")
    if told:
        log.info("%s: %d of %d tasks are left out: %s", tasks.suite, dropped.total(), len(of_split), told)
    return list(chosen[: tasks.limit])


def task_filter(tasks: TasksConfig) -> Filter:
    """The filters of a configuration; the suites to keep apart from are read for their repositories."""
    avoid = {repository(task) for path in tasks.decontaminate for task in load_suite(path).tasks}
    return Filter(tasks.repositories, tasks.languages, tasks.difficulties, tasks.max_patch_lines, tasks.max_files, tuple(sorted(avoid)))


def open_machines(sandbox: SandboxConfig) -> Backend:
    """The backend that the configuration names."""
    return open_backend(sandbox.backend, sandbox.hosts, sandbox.image_gb)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run starts from."""

    tasks: dict[str, Task]
    """Instance id -> the task, sealed; or with the reason why it must not be attempted."""
    images: dict[str, str]
    """Image name -> what identifies its content."""

    def usable(self) -> list[Task]:
        """The tasks that may be attempted; ValueError where there is none."""
        usable = [task for task in self.tasks.values() if not task.unusable]
        if not usable:
            raise ValueError(f"none of the tasks may be attempted; the first: {next(iter(self.tasks.values())).unusable}")
        if dropped := len(self.tasks) - len(usable):
            log.warning("%d of %d tasks are left out: they may not be attempted", dropped, len(self.tasks))
        return usable


async def prepare_machines(sandbox: SandboxConfig, suite: Path, tasks: Sequence[Task], run: Path | None = None) -> Prepared:
    """Sweep what dead processes left behind; make environments, fetch images (named in the manifest of `run`) and seal these tasks."""
    backend = open_machines(sandbox)
    await backend.sweep()
    await prepare_suite(Suite(suite, tuple(tasks)))
    room = asyncio.Semaphore(IMAGES_AT_ONCE)

    async def prepare(name: str) -> str:
        async with room:
            return await backend.prepare(name)

    names = sorted({task.image.name for task in tasks})
    images = dict(zip(names, await gather([prepare(name) for name in names]), strict=True))
    for line in record_images(run, images) if run else []:
        log.warning("going on although %s", line)
    ready = await seal_tasks(backend, list({task.instance_id: task for task in tasks}.values()))
    return Prepared({task.instance_id: task for task in ready}, images)


@asynccontextmanager
async def open_actor(config: Config, chat: Chat, log: Path, served: Policy | None = None, after: int = 0) -> AsyncIterator[Actor]:
    """What rollout.policy names: a script, or the model; `served` is its policy where one runs already, else one is started and stopped.

    `after`: turns of another that each episode starts from.
    """
    if config.rollout.policy != "model":
        yield Actor(actor_name(config), make_expert(config.rollout.policy, chat, after), config.train.seed)
        return
    policy = served or await (start_chat_policy(config) if config.policy.api == "chat" else start_engines(config, chat.template, log))
    try:
        yield Actor(actor_name(config), partial(deal, policy), config.train.seed)
    finally:
        if served is None:
            await asyncio.shield(policy.close())
