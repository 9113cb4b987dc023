"""The simulated user of an interactive task: what it says to a question, and what that does to its goal; knows no machine and no grade.

A user is a speaker, scripted or a model, and the rules that read its answers (drift.py, goal.py). What it says and how its goal stands
is recorded with the turn, so nobody is asked twice after a kill or in a replay. A user that fails, takes too long or drifts is counted
and logged; the episode goes on and is graded, but is left out of training, and nothing that a user says is ever a reward of the agent's.
The user's own training is in stages/simulator.py.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from tasks import Task

from .brief import brief_of
from .chat_policy import ChatPolicy
from .config_user import UserConfig
from .drift import CLOSING, NO_ANSWER, Answer, Dialogue, name_wanted, read_answer, same_words
from .goal import Fault, Goal, Heard, Kind, State, States, advance
from .prompt import ByteTemplate, Template
from .served import open_server
from .tools import clip
from .types import ContextFull, PolicyError, Scored, Turn

log = logging.getLogger(__name__)
ANSWER_TOKENS = 256
SYSTEM = (
    "You play the user who reported a problem with a program. A programmer asks you a question; you answer as that user, in one or two "
    "sentences, and write nothing else."
)
STEER = """What you want: {objective}
Who you are: {profile}
How you behave: {policy}
{items}
If nothing of it answers the question, tell the next thing that is not told yet. If all is told, say: {closing}

The conversation so far:
{dialogue}
The programmer asks: {question}
Your answer:"""


@dataclass(frozen=True, slots=True)
class Cue:
    """What a speaker goes by: the history and the state of its goal."""

    goal: Goal
    states: States
    dialogue: Dialogue
    question: str
    chance: str
    """A text that is another one for each answer of each episode, and the same whenever it is asked for again."""


class Speaker(Protocol):
    """Finds the words."""

    async def say(self, cue: Cue) -> str:
        """The next answer; PolicyError, ContextFull or TimeoutError where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class User:
    """Answers the questions of all episodes of a run."""

    speaker: Speaker
    settings: UserConfig

    async def hear(self, task: Task, turn: Turn, played: Sequence[Turn], episode_id: str, chars: int) -> Turn:
        """The turn, whose call is a question, with the answer (at most so many characters) and what it was."""
        started = time.monotonic()
        cue = make_cue(brief_of(task, self.settings).goal, played, turn, f"{self.settings.seed}/{episode_id}")
        text = take_words(await self._speak(cue, episode_id), chars)
        heard = judge_answer(make_answer(cue, task, text))
        for fault in heard.faults:
            log.warning("%s: the user %s: %.200r", episode_id, _SAYS[fault], text)
        return replace(turn, observation=text, heard=replace(heard, seconds=time.monotonic() - started))

    async def _speak(self, cue: Cue, episode_id: str) -> str:
        try:
            return await self.speaker.say(cue)
        except (PolicyError, ContextFull, TimeoutError) as failure:
            log.warning("%s: the user's server failed: %s: %s", episode_id, type(failure).__name__, failure)
            return NO_ANSWER

    def judge(self, played: Sequence[Turn]) -> Scored | None:
        """Nothing, with the reason, for an episode whose user has drifted; None where credit may see the verdict."""
        heard = [turn.heard for turn in played if turn.heard is not None]
        if self.settings.keep_drifted or not heard or not heard[-1].drifted:
            return None
        return Scored(None, f"the user drifted: {', '.join(dict.fromkeys(fault.value for one in heard for fault in one.faults))}")


_SAYS = {
    Fault.SILENT: "gives no answer",
    Fault.REPEATS: "repeats itself",
    Fault.CONTRADICTS: "contradicts its goal",
    Fault.INVENTS: "says what its goal does not hold",
    Fault.REVEALS: "tells the fix",
}


def make_cue(goal: Goal, played: Sequence[Turn], turn: Turn, chance: str) -> Cue:
    """What the user goes by when the turn asks it, after the turns that were played."""
    earlier = [one for one in played if one.heard is not None]
    dialogue = [(one.call.arguments["question"], one.observation) for one in earlier if one.call]
    question = turn.call.arguments["question"] if turn.call else ""
    return Cue(goal, recall(goal, earlier), dialogue, question, f"{chance}/{len(dialogue)}")


def take_words(said: str, chars: int) -> str:
    """What the agent sees of an answer: at most so many characters."""
    return clip(said.strip() or NO_ANSWER, chars)


def make_answer(cue: Cue, task: Task, text: str) -> Answer:
    """A text as the answer to a cue, with all that it is measured against."""
    from tasks import fix_lines, tells  # heavy: libcst

    secret = fix_lines(task.gold_patch)
    shown = tells(text, secret) and not tells(task.problem_statement, secret)
    return Answer(cue.goal, cue.states, cue.dialogue, cue.question, text, task.problem_statement, shown)


def judge_answer(answer: Answer) -> Heard:
    """Its faults, and how the goal stands after it."""
    event = read_answer(answer)
    after = advance(answer.goal, answer.states, event)
    return Heard(event.faults, tuple(zip([one.kind for one in answer.goal.components], after, strict=True)))


def recall(goal: Goal, earlier: Sequence[Turn]) -> States:
    """How the goal stands after these turns, as it was recorded."""
    if not earlier or earlier[-1].heard is None:
        return goal.begin()
    return tuple(state for _, state in earlier[-1].heard.states)


@asynccontextmanager
async def open_user(settings: UserConfig | None) -> AsyncIterator[User | None]:
    """The user of a configuration; None where nobody can be asked. PolicyError where a model's server names no model."""
    if settings is None or not settings.ask:
        yield None
    elif settings.server is None:
        yield User(ScriptedSpeaker(settings.drift), settings)
    else:
        async with open_server(settings.server, temperature=0.0) as server:
            yield User(ModelSpeaker(server, settings.longest_wait), settings)


# --- a model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelSpeaker:
    """A model, steered: it is told its goal, how each part of it stands, and the conversation."""

    server: ChatPolicy
    seconds: float
    """Limit of one answer, all attempts together."""

    async def say(self, cue: Cue) -> str:
        """Its own words, at temperature 0."""
        async with asyncio.timeout(self.seconds):
            return (await self.server.sample(write_prompt(ByteTemplate(), cue), ANSWER_TOKENS, seed=0)).text


def write_prompt(template: Template, cue: Cue) -> list[int]:
    """What a model is sent: here in use, in stages/simulator.py in training."""
    return template.start(SYSTEM, steer(cue))


def steer(cue: Cue) -> str:
    """U(history, state) as a model reads it."""
    one = {component.kind: component.text for component in cue.goal.components[:3]}
    wanted = [f"- [{_STANDS[state]}] {component.text}" for component, state in zip(cue.goal.components[3:], cue.states[3:], strict=True)]
    return STEER.format(
        objective=one[Kind.OBJECTIVE],
        profile=one[Kind.PROFILE],
        policy=one[Kind.POLICY],
        items="\n".join(["What you know:", *wanted]) if wanted else "You know nothing more than that.",
        closing=CLOSING,
        dialogue="\n".join(f"- {question}\n  {answer}" for question, answer in cue.dialogue) or "(none)",
        question=cue.question,
    )


_STANDS = {
    State.COMPLETE: "told",
    State.ALIGNED: "told",
    State.ATTEMPTED: "asked for, did not get across",
    State.INCOMPLETE: "not told yet",
    State.MISALIGNED: "not told yet",
}


# --- rules ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScriptedSpeaker:
    """Says the held requirement that the question names, or the next untold one, word for word; drifts at a rate."""

    drift: float = 0.0

    async def say(self, cue: Cue) -> str:
        """The same for the same cue."""
        for question, answer in cue.dialogue:
            if same_words(question, cue.question):
                return answer
        place = name_wanted(cue.goal, cue.states, cue.question)
        if place is None:
            return CLOSING
        text = cue.goal.components[place].text
        if _chance(cue.chance) >= self.drift:
            return text
        ways = [contradict, invent, *([_repeat(cue.dialogue)] if cue.dialogue else [])]
        return ways[int(_chance(f"{cue.chance}/how") * len(ways))](text)


def contradict(text: str) -> str:
    """The opposite, in plain words."""
    return f"It is not so: {text}"


def invent(text: str) -> str:
    """Other values; where there are none, a wish of its own."""
    found = re.sub(r"(?<![\w.])\d+(?!\w)", lambda match: str(int(match[0]) * 7 + 1001), text)
    return found if found != text else "Above all the report needs 1001 green lamps."


def _repeat(dialogue: Dialogue) -> Callable[[str], str]:
    return lambda _: dialogue[-1][1]


def _chance(text: str) -> float:
    """From 0 to 1, drawn from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
