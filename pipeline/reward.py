"""What an episode is rewarded for: the hidden tests, or a worse channel, to study what the clarity of a reward is worth.

A study, not an algorithm (docs/methods/reward_channels.md): tasks, policy, credit and budget stay, the channel varies. Knows episodes
and verdicts; nothing of credit. Whatever the channel says, the verdict stays in the record, and an episode that the infrastructure
failed has no reward in any of them. A channel that comes to no answer gives None with the reason: such an episode is counted, and no
one trains on it. Left out: learned reward models, judges that see the whole trajectory.
"""

import asyncio
import hashlib
import keyword
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from tasks import Task

from .chat_policy import ChatPolicy
from .config import RewardConfig
from .prompt import ByteTemplate
from .served import open_server
from .types import ContextFull, Episode, PolicyError, Scored, Stop

log = logging.getLogger(__name__)
Channel = Callable[[Task, Episode], Awaitable[Scored]]
"""A graded episode of a task -> what credit shall see instead of its verdict."""

PASSED = frozenset({"PASSED", "XFAIL"})
"""Statuses that count, as in the official harness."""
SMALL = 40
"""Changed lines up to which a diff looks like a repair."""
JUDGE_TOKENS = 512
JUDGE_SYSTEM = "You review patches. You see a report and the patch that is meant to repair it. You cannot run anything."
JUDGE_QUESTION = (
    "{statement}\n\n--- the patch ---\n{patch}\n\nDoes it repair what is reported? End with one line: SCORE: a number from 0 to 1."
)
NAME = re.compile(r"\b[A-Za-z_]\w{2,}\b")
TEST_FILE = re.compile(r"(^|/)(tests?/|test_[^/]*$|[^/]*_test\.py$|conftest\.py$)")
SCORE = re.compile(r"^SCORE:[ \t]*(\d+(?:\.\d+)?)[ \t]*$", re.MULTILINE)


@asynccontextmanager
async def open_channel(config: RewardConfig, seed: int) -> AsyncIterator[Channel | None]:
    """The channel of a configuration; None for the hidden tests, which need none."""
    match config.kind:
        case "hidden_tests":
            yield None
        case "noise":
            yield partial(flip_verdict, rate=config.flip, seed=seed)
        case "fraction":
            yield count_passed
        case "visible_tests":
            yield read_visible
        case "diff":
            yield judge_diff
        case "judge":
            assert config.judge is not None
            async with open_server(config.judge, temperature=0.0) as judge:
                yield partial(ask_judge, judge, config.judge.attempts * config.judge.request_seconds)


async def score(channel: Channel | None, task: Task, episode: Episode) -> Episode:
    """The episode with the channel's word in it; as it is where it has no verdict, or its user has drifted."""
    if channel is None or episode.stop is Stop.INFRA or episode.reward is None or episode.scored is not None:
        return episode
    scored = await channel(task, episode)
    if scored.value is None:
        log.warning("%s is left out of training: the reward channel gave nothing: %s", episode.episode_id, scored.why)
    return replace(episode, scored=scored)


async def flip_verdict(task: Task, episode: Episode, *, rate: float, seed: int) -> Scored:
    """The verdict, turned round with probability `rate`: symmetric noise, the same for an episode whenever it is asked."""
    digest = hashlib.blake2b(f"{seed}/{episode.episode_id}".encode(), digest_size=8).digest()
    flipped = int.from_bytes(digest, "big") / 2**64 < rate
    return Scored(_truth(episode) if not flipped else 1.0 - _truth(episode))


async def count_passed(task: Task, episode: Episode) -> Scored:
    """The share of the task's hidden tests that pass, 1 only where all do; 0 where none was run."""
    wanted = (*task.fail_to_pass, *task.pass_to_pass)
    statuses = episode.verdict.tests if episode.verdict else {}
    share = sum(statuses.get(test) in PASSED for test in wanted) / len(wanted) if wanted else 0.0
    return Scored(1.0 if _truth(episode) == 1.0 else min(share, 1.0 - 1e-6))


async def read_visible(task: Task, episode: Episode) -> Scored:
    """1 where all tests that the agent could see passed in its machine at the end, by its machine's own word: it may have deleted them."""
    return Scored(float(episode.passed == 1.0))


async def judge_diff(task: Task, episode: Episode) -> Scored:
    """The mean of three looks at the diff: it is small, it changes source and no tests, it changes something that the statement names."""
    patch = episode.patch
    if not patch:
        return Scored(0.0)
    lines = patch.splitlines()
    files = [line.removeprefix("+++ b/") for line in lines if line.startswith("+++ b/")]
    changed = [line for line in lines if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))]
    around = [line for line in lines if line.startswith("@@")] + [line for line in changed if line.startswith("-")]
    names = set(NAME.findall("\n".join(around))) - set(keyword.kwlist)
    in_source = bool(files) and not any(TEST_FILE.search(file) for file in files)
    return Scored(((len(changed) <= SMALL) + in_source + bool(names & set(NAME.findall(task.problem_statement)))) / 3)


async def ask_judge(judge: ChatPolicy, seconds: float, task: Task, episode: Episode) -> Scored:
    """A model's number from 0 to 1; None where the server fails, takes longer than `seconds` in all or says anything else."""
    if not episode.patch:
        return Scored(0.0)
    question = JUDGE_QUESTION.format(statement=task.problem_statement.strip(), patch=episode.patch)
    try:
        async with asyncio.timeout(seconds):
            answer = await judge.sample(ByteTemplate().start(JUDGE_SYSTEM, question), JUDGE_TOKENS, seed=0)
    except (PolicyError, ContextFull, TimeoutError) as failure:
        return Scored(None, f"{type(failure).__name__}: {failure}")
    return read_score(answer.text) if answer.stopped else Scored(None, f"the judge's answer was cut at {JUDGE_TOKENS} tokens")


def read_score(text: str) -> Scored:
    """The one line SCORE: x of an answer, its last, x from 0 to 1; an earlier one may be the agent's, quoted.

    >>> read_score("It looks right.\\nSCORE: 0.75").value
    0.75
    """
    found = SCORE.findall(text)
    last = SCORE.fullmatch(text.rstrip().rpartition("\n")[2])
    if last is None or len(found) != 1 or float(last[1]) > 1.0:
        return Scored(None, f"no line SCORE: with a number from 0 to 1 ends the judge's answer: {text[-200:]!r}")
    return Scored(float(last[1]))


def _truth(episode: Episode) -> float:
    assert episode.reward is not None
    return episode.reward
