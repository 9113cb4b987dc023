"""A model's votes on each turn of an episode, +1, 0 or -1; knows turns as texts, nothing of what becomes of the votes.

The votes are kept with the episode, so a resumed run asks about no turn twice. A judge that fails, is late or says anything else
gives no vote: that is logged and counted, and is never a 0. Nobody votes on the last turn, after which there is no state.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from tasks import Task

from .chat_policy import ChatPolicy
from .config_hindsight import HindsightConfig
from .gather import gather
from .prompt import ByteTemplate
from .served import open_server
from .types import ContextFull, Episode, PolicyError, Stop, Turn

log = logging.getLogger(__name__)
Jury = Callable[[Task, Episode], Awaitable[Episode]]
"""An episode of a task -> the same with votes in its turns."""

VOTE_TOKENS = 512
SYSTEM = "You review single steps of an agent that repairs a program. You cannot run anything."
QUESTION = (
    "{statement}\n\n--- what the agent wrote ---\n{action}\n\n--- what came of it ---\n{observation}\n\n"
    "Did this step bring the repair nearer? End with one line: VOTE: +1 (yes), 0 (neither) or -1 (it was a mistake)."
)
VOTE = re.compile(r"^VOTE:[ \t]*(\+1|0|-1)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Judge:
    """A server, how often it is asked about a turn, and how long an answer may take in all."""

    server: ChatPolicy
    votes: int
    seconds: float


@asynccontextmanager
async def open_jury(config: HindsightConfig | None) -> AsyncIterator[Jury | None]:
    """Who votes on the turns of a run; None where rules rate them, or nothing does."""
    if config is None or config.judge is None:
        yield None
        return
    async with open_server(config.judge, temperature=0.0 if config.votes == 1 else 1.0) as server:
        yield partial(vote_on, Judge(server, config.votes, config.judge.attempts * config.judge.request_seconds))


async def vote_on(judge: Judge, task: Task, episode: Episode) -> Episode:
    """The episode with votes in all its turns but the last; as it is where the infrastructure failed it."""
    if episode.stop is Stop.INFRA or episode.reward is None:
        return episode
    asked = episode.turns[:-1]
    votes = await gather([_ask(judge, task, turn, seed) for turn in asked for seed in range(judge.votes)])
    given = [tuple(vote for vote in votes[start : start + judge.votes] if vote is not None) for start in range(0, len(votes), judge.votes)]
    if missing := votes.count(None):
        log.warning("%s: the judge gave no vote in %d of %d answers", episode.episode_id, missing, len(votes))
    return replace(
        episode, turns=(*(replace(turn, votes=some) for turn, some in zip(asked, given, strict=True)), *episode.turns[len(asked) :])
    )


async def _ask(judge: Judge, task: Task, turn: Turn, seed: int) -> int | None:
    question = QUESTION.format(statement=task.problem_statement.strip(), action=turn.completion.text, observation=turn.observation)
    try:
        async with asyncio.timeout(judge.seconds):
            answer = await judge.server.sample(ByteTemplate().start(SYSTEM, question), VOTE_TOKENS, seed)
    except (PolicyError, ContextFull, TimeoutError) as failure:
        log.info("no vote: %s: %s", type(failure).__name__, failure)
        return None
    return read_vote(answer.text) if answer.stopped else None


def read_vote(text: str) -> int | None:
    """The one line VOTE: of an answer, its last; None for anything else: an earlier one may be the agent's, quoted.

    >>> read_vote("It broke the file.\\nVOTE: -1")
    -1
    """
    found = VOTE.findall(text)
    last = VOTE.fullmatch(text.rstrip().rpartition("\n")[2])
    return int(last[1]) if last and len(found) == 1 else None


def count_majority(votes: tuple[int, ...]) -> int | None:
    """What more than half of the votes say; None where nothing does.

    >>> count_majority((1, 1, 0)), count_majority((1, -1)), count_majority(())
    (1, None, None)
    """
    return next((vote for vote in (1, 0, -1) if 2 * votes.count(vote) > len(votes)), None)
