"""Step-wise reward from expert actions (SRL, arXiv:2510.25992): for tasks that every rollout fails; no sandbox, no grade.

An expert's resolved episode of N turns gives N - 1 prompts, [issue, the turns before k]: the policy thinks and writes ONE action, and only
that is compared with the expert's (similarity.py). What remains is the loop of train.py: a prompt is a task, its answers are a
group of episodes of one turn, dynamic sampling fills a batch with prompts whose rewards differ. The run lies in RUN/srl and goes on
where it was killed; its model, RUN/srl/model, is what train.steps of reinforcement start from.
Left out: prompts that the context cannot hold; the expert's last turn (it submits); expert turns without an action that is valid here:
nobody can be asked, so what an expert asked its user is context alone.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tasks import Task

from ..action import FormatError
from ..actor import choose_tasks, open_chat
from ..config import Config, CreditConfig, PlanningConfig, RewardConfig, SrlConfig
from ..journal import Journal
from ..prefix import retell
from ..prompt import Chat
from ..recover import train_through
from ..similarity import reward_action
from ..train import World
from ..types import Completion, Scored, ToolCall, Turn
from .prompts import Prompt, export_exactly, open_prompts
from .rft import choose_demonstrations

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One prompt and what the expert did there."""

    task: Task
    """The expert's task, under a name of the step's own: toy-1#03 is its third turn, toy-1.1#03 that of a second expert."""
    prompt: tuple[int, ...]
    action: ToolCall


def srl_config(config: Config, srl: SrlConfig) -> Config:
    """The whole configuration as the loop reads it in this stage."""
    never = {"anchors": False, "trees": False, "visible_tests": "", "prefix": None, "continuations": 0}
    size = {"group_size": srl.answers, "tasks_per_step": srl.batch, "fill_groups": srl.batch, "fill_rounds": srl.rounds}
    rollout = {**never, **size, "max_turns": 1, "fill_short": "skip"}
    parts = {
        "rollout": config.rollout.model_copy(update=rollout),
        "credit": CreditConfig(kind="episode", filter_on="shaped", min_std=srl.min_std),
        "reward": RewardConfig(),
        "hindsight": None,
        "planning": PlanningConfig(grams=config.planning.grams, cap=config.planning.cap),
        "optim": config.optim.model_copy(update={"lr": srl.lr, "batch_episodes": srl.batch * srl.answers}),
        "train": config.train.model_copy(update={"steps": srl.steps, "eval_every": 0}),
    }
    return config.model_copy(update=parts)


def make_steps(chat: Chat, task: Task, turns: Sequence[Turn], history: int, name: str) -> Iterator[Step]:
    """The prompts that an expert's turns give, each with at most `history` of the turns before."""
    told = retell(chat, task, turns)
    for number, turn in enumerate(told[:-1], 1):
        if turn.call is None or turn.call.name not in chat.tools:
            continue
        prompt = chat.start_prompt(task)
        for before in told[max(number - 1 - history, 0) : number - 1]:
            prompt = chat.extend(prompt, before.completion, before.observation)
        yield Step(replace(task, instance_id=f"{name}#{number:02d}"), tuple(prompt), turn.call)


def load_steps(config: Config, srl: SrlConfig, chat: Chat) -> dict[str, Step]:
    """Every prompt of the expert's episodes on the run's tasks, by name; ValueError where there is none."""
    of_task = {task.instance_id: task for task in choose_tasks(config.tasks, config.tasks.split)}
    steps, seen = list[Step](), Counter[str]()
    with Journal(srl.episodes, readonly=True) as journal:
        for expert in choose_demonstrations(journal.episodes()):
            if (task := of_task.get(expert.instance_id)) is None:
                continue
            name = f"{task.instance_id}.{seen[task.instance_id]}" if seen[task.instance_id] else task.instance_id
            steps += make_steps(chat, task, expert.played, srl.history, name)
            seen[task.instance_id] += 1
    return {step.task.instance_id: step for step in fit(steps, config, srl.episodes)}


def fit(steps: Sequence[Step], config: Config, source: Path) -> list[Step]:
    """Those that leave room for an answer; ValueError where there is none."""
    room = (config.model.context if config.model else 0) - config.rollout.max_new_tokens
    fitting = [step for step in steps if len(step.prompt) <= room]
    if not steps:
        raise ValueError(f"srl.episodes: {source} holds no resolved episode of two turns or more on the tasks of {config.tasks.suite}")
    if not fitting:
        raise ValueError(
            f"srl.episodes: none of {len(steps)} prompts leaves room in model.context for rollout.max_new_tokens ({room} left)"
        )
    log.info("%d prompts of an expert's; %d more are too long for the context", len(fitting), len(steps) - len(fitting))
    if config.srl is not None and len(fitting) < config.srl.batch:
        log.warning("srl.batch = %d of %d prompts: an update asks the same ones several times", config.srl.batch, len(fitting))
    return fitting


def make_prompt(chat: Chat, step: Step) -> Prompt:
    """What the policy is asked, and how its answer is read."""
    return Prompt(step.task, step.prompt, partial(read_answer, chat, step))


def read_answer(chat: Chat, step: Step, completion: Completion) -> tuple[Turn, Scored]:
    """The turn of an answer (what is wrong with it, where it has no valid action, as its observation), and how like the expert's it is."""
    call = chat.parse(completion.text)
    scored = Scored(reward_action(call, step.action))
    if isinstance(call, FormatError):
        return Turn(step.prompt, completion, None, f"Format error: {call.message}"), scored
    return Turn(step.prompt, completion, call, ""), scored


@asynccontextmanager
async def open_steps(config: Config, srl: SrlConfig, run: Path) -> AsyncIterator[World]:
    """What the stage acts on: an engine, a learner and prompts."""
    chat = open_chat(config)
    steps = load_steps(config, srl, chat)
    async with open_prompts(config, run, chat, [make_prompt(chat, step) for step in steps.values()]) as world:
        yield world


async def run_srl(config: Config, srl: SrlConfig, run: Path) -> None:
    """The whole stage, or what a killed one left of it; the model is in `run`/model then. `config` is srl_config's."""
    if (run / "model").is_dir():
        return
    with Journal(run) as journal:
        await train_through(config, journal, partial(open_steps, config, srl, run))
        export_exactly(config, run, journal.next_step)
