"""Training the simulated user itself (UGST's second and third stage, arXiv:2507.20152): recorded questions -> a model true to its goal.

Each question of a run's interactive episodes is a prompt, the very text that user.ModelSpeaker sends: who the user is, how its goal
stands and the dialogue so far. What the user held is made again from the task and from the `user` section in the config.yaml of that
run, because the recorded states are of that goal and of no other.

    rft           cross-entropy on the recorded answers that alignment.py finds nothing wrong with; none that was clipped or is too long
    train.steps   GRPO: a question is a task, its answers are a group of episodes of one turn, rewarded by alignment.py; no sandbox

An answer that the token limit cut earns 0, less than any other: the agent would be told half a sentence. What remains is the loop of
train.py. The run goes on where it was killed; RUN/tuned holds the first part, RUN/model the model, for user.server.path.
Left out of the paper: reasoning before the answer; new dialogues between a trained user and an agent (roll out again, and train again).
"""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from tasks import Task

from ..action import ASK_USER
from ..actor import choose_tasks, open_chat
from ..alignment import find_misaligned, reward_answer
from ..batch import merge_turns
from ..brief import brief_of
from ..config import Config, RftConfig, SimulatorConfig, UserConfig
from ..config_io import read_yaml
from ..drift import is_clipped
from ..goal import Goal, Heard
from ..journal import Journal
from ..prompt import Chat
from ..recover import train_through
from ..train import World
from ..types import Completion, Episode, Sample, Scored, Stop, ToolCall, Turn
from ..user import ANSWER_TOKENS, Cue, judge_answer, make_answer, make_cue, take_words, write_prompt
from .prompts import Prompt, export_exactly, open_prompts
from .rft import tune

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """One that an agent asked, and what was answered to it."""

    task: Task
    """The agent's task, under a name of the question's own: toy-1#03 is the third that was asked about it."""
    cue: Cue
    prompt: tuple[int, ...]
    answers: tuple[str, ...]
    """As they were recorded, each once."""


def simulator_config(config: Config, model: Path) -> Config:
    """The configuration as the loop reads it in this run."""
    rollout = config.rollout.model_copy(update={"max_turns": 1, "trees": False})
    path = config.model.model_copy(update={"path": model}) if config.model else None
    return config.model_copy(update={"rollout": rollout, "model": path, "rft": None})


# --- questions -----------------------------------------------------------------------------------------------


def load_questions(config: Config, simulator: SimulatorConfig, chat: Chat) -> dict[str, Question]:
    """Every question of the recorded episodes on the run's tasks, each once, by name; ValueError where there is none that can be used."""
    if config.rollout.max_new_tokens > ANSWER_TOKENS:
        raise ValueError(f"rollout.max_new_tokens = {config.rollout.max_new_tokens}: a simulated user has at most {ANSWER_TOKENS} in use")
    settings, source = recorded_user(simulator.episodes), simulator.episodes
    of_task = {task.instance_id: task for task in choose_tasks(config.tasks, config.tasks.split)}
    asked = 0

    def known(journal: Journal) -> Iterator[tuple[Task, Asked]]:
        nonlocal asked
        for episode in journal.episodes():
            for one in asked_in(episode):
                asked += 1
                if episode.instance_id in of_task:
                    yield of_task[episode.instance_id], one

    with Journal(source, readonly=True) as journal:
        found = make_questions(chat, settings, known(journal))
    if not asked:
        raise ValueError(f"simulator.episodes: {source} holds no question to a user")
    if not found:
        others = f"none of {asked} questions is about a task of {config.tasks.suite}, {config.tasks.split}"
        raise ValueError(f"simulator.episodes: {source}: {others}")
    return {one.task.instance_id: one for one in fit(found, config, source)}


def recorded_user(run: Path) -> UserConfig:
    """The section `user` of the run's config.yaml; ValueError where nobody could be asked there."""
    with Journal(run, readonly=True):
        pass  # a folder that is no run is told as such
    section = read_yaml(run / "config.yaml").get("user")
    try:
        settings = UserConfig.model_validate(section) if section is not None else None
    except ValidationError as error:
        raise ValueError(f"{run}/config.yaml: user: {error.errors()[0]['msg']}") from None
    if settings is None or not settings.ask:
        raise ValueError(f"simulator.episodes: {run} was made without a user who could be asked (section user of its config.yaml)")
    return settings


@dataclass(frozen=True, slots=True)
class Asked:
    """A recorded question."""

    played: tuple[Turn, ...]
    """What was before it."""
    turn: Turn


def asked_in(episode: Episode) -> Iterator[Asked]:
    """The questions of an episode in their order."""
    for place, turn in enumerate(episode.played):
        if turn.heard is not None and turn.call is not None:
            yield Asked(episode.played[:place], turn)


def make_questions(chat: Chat, settings: UserConfig, asked: Iterable[tuple[Task, Asked]]) -> list[Question]:
    """One for each (task, dialogue so far, question), in the order of the record, with all that was answered to it."""
    found: dict[tuple[object, ...], Question] = {}
    count = Counter[str]()
    for task, one in asked:
        cue = make_cue(recorded_goal(task, settings, one), one.played, one.turn, "")
        key = (task.instance_id, *cue.dialogue, cue.question)
        if key not in found:
            count[task.instance_id] += 1
            named = replace(task, instance_id=f"{task.instance_id}#{count[task.instance_id]:02d}")
            found[key] = Question(named, cue, tuple(write_prompt(chat.template, cue)), ())
        answers = dict.fromkeys((*found[key].answers, one.turn.observation))
        found[key] = replace(found[key], answers=tuple(answers))
    return list(found.values())


def recorded_goal(task: Task, settings: UserConfig, one: Asked) -> Goal:
    """What the user held; ValueError where the recorded states are of another goal."""
    goal = brief_of(task, settings).goal
    held = [kind for kind, _ in one.turn.heard.states] if one.turn.heard else []
    if held != [component.kind for component in goal.components]:
        raise ValueError(f"{task.instance_id}: its recorded user held something else; was the suite built again since?")
    return goal


def fit(questions: Sequence[Question], config: Config, source: Path) -> list[Question]:
    """Those that leave room for an answer; ValueError where there is none."""
    room = (config.model.context if config.model else 0) - config.rollout.max_new_tokens
    fitting = [one for one in questions if len(one.prompt) <= room]
    if not fitting:
        raise ValueError(
            f"simulator.episodes: none of the {len(questions)} questions of {source} leaves room in model.context for "
            f"rollout.max_new_tokens ({room} left)"
        )
    log.info("%d questions; %d more are too long for the context", len(fitting), len(questions) - len(fitting))
    return fitting


# --- faithful answers ----------------------------------------------------------------------------------------


def tuning_samples(questions: Sequence[Question], chat: Chat, tokens: int) -> tuple[Sample, ...]:
    """The faithful answers of at most so many tokens, with loss on the answer and its end alone."""
    samples: list[Sample] = []
    for one in questions:
        for text in filter(partial(is_faithful, one), one.answers):
            ids = tuple(chat.write(text))
            if len(ids) <= tokens:
                turn = Turn(one.prompt, Completion(ids, (0.0,) * len(ids), text, 0, True), None, "")
                name = one.task.instance_id
                samples += merge_turns(Episode(name, name, name, (turn,), Stop.STEP, "", None), np.ones(1), np.ones(1, dtype=bool))
    return tuple(samples)


def is_faithful(question: Question, text: str) -> bool:
    """Nothing is wrong with it, and it is whole."""
    return not is_clipped(text) and not find_misaligned(make_answer(question.cue, question.task, text))


def load_samples(config: Config, simulator: SimulatorConfig, questions: Sequence[Question], chat: Chat) -> tuple[Sample, ...]:
    """Those of the recorded answers; ValueError where none is faithful."""
    samples = tuning_samples(questions, chat, config.rollout.max_new_tokens)
    if not samples:
        raise ValueError(f"{simulator.episodes}: holds no faithful answer to fine-tune on (rft); leave rft out, or ask a better user")
    return samples


# --- answers and their reward --------------------------------------------------------------------------------


def make_prompt(question: Question, chars: int) -> Prompt:
    """What the policy is asked, and how its answer, of which the agent would see so many characters, is read."""
    return Prompt(question.task, question.prompt, partial(read_completion, question, chars))


def read_completion(question: Question, chars: int, completion: Completion) -> tuple[Turn, Scored]:
    """The turn as an agent's episode would hold it, and R(u); 0 where the token limit cut it."""
    answer = make_answer(question.cue, question.task, take_words(completion.text, chars))
    heard: Heard = judge_answer(answer)
    call = ToolCall(ASK_USER, {"question": question.cue.question})
    return Turn(question.prompt, completion, call, answer.text, heard=heard), Scored(reward_answer(answer) if completion.stopped else 0.0)


# --- the run -------------------------------------------------------------------------------------------------


def check_simulator(config: Config, simulator: SimulatorConfig) -> None:
    """ValueError or FileNotFoundError where there is nothing to learn from."""
    chat = open_chat(config)
    questions = load_questions(config, simulator, chat)
    if config.rft is not None:
        load_samples(config, simulator, list(questions.values()), chat)


def tune_simulator(config: Config, simulator: SimulatorConfig, rft: RftConfig, run: Path) -> None:
    """The first part, or what a killed one left of it; the model is in `run`/model then."""
    if not (run / "model").is_dir():
        chat = open_chat(config)
        questions = load_questions(config, simulator, chat)
        tune(config, rft, load_samples(config, simulator, list(questions.values()), chat), run)


@asynccontextmanager
async def open_questions(config: Config, simulator: SimulatorConfig, run: Path) -> AsyncIterator[World]:
    """An engine, a learner and questions."""
    chat = open_chat(config)
    questions = load_questions(config, simulator, chat)
    prompts = [make_prompt(one, config.rollout.observation_chars) for one in questions.values()]
    async with open_prompts(config, run, chat, prompts) as world:
        yield world


async def train_simulator(config: Config, simulator: SimulatorConfig, run: Path) -> None:
    """The steps that are not committed, and the model of the last one; `config` is simulator_config's."""
    with Journal(run) as journal:
        await train_through(config, journal, partial(open_questions, config, simulator, run))
        export_once(config, journal)


def export_once(config: Config, journal: Journal) -> None:
    """RUN/model, where it is not that of the last step."""
    phase, started = f"export after step {journal.next_step}", time.monotonic()
    if not journal.phase_done(phase):
        export_exactly(config, journal.run, journal.next_step)
        journal.mark_phase(phase, time.monotonic() - started)
