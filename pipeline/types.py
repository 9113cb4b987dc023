"""The nouns of the pipeline (ToolCall ... Batch, plain frozen data) and its two seams (Policy, Learner).

Tokens are the truth, text is a view: sampled ids, engine log-probs and the policy version of every token are kept,
and nothing is ever tokenised a second time for training.

    Group                      the G episodes of one task at one step
      Episode                  one attempt, until Stop, then graded
        Turn                   prompt ids -> Completion -> ToolCall (or a format error) -> observation
    Sample, Batch              what the learner trains on (samples.py)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from tasks import Verdict

from .failures import ContextFull as ContextFull
from .failures import EngineDied as EngineDied
from .failures import NodesLost as NodesLost
from .failures import PolicyError as PolicyError
from .goal import Heard
from .samples import Batch as Batch
from .samples import Likeliest as Likeliest
from .samples import Sample as Sample
from .samples import Teacher as Teacher
from .weights import Digests


class Stop(StrEnum):
    """Why an episode ended."""

    SUBMITTED = "submitted"
    MAX_TURNS = "max_turns"
    CONTEXT_FULL = "context_full"
    TIME = "time"
    FORMAT = "format"
    """Too many malformed turns in a row."""
    RESOURCE = "resource"
    """The agent used up or killed its own machine."""
    STEP = "step"
    """One action, scored by itself (stages/srl.py): there was no machine, and there is no verdict."""
    INFRA = "infra"
    """The machine, engine or daemon failed: not graded, absent from every statistic of its group."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One action: {"name": "edit", "arguments": {"path": "a.py", "old": "x", "new": "y"}}."""

    name: str
    arguments: dict[str, str]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy sampled: ids (with the end-of-turn id where it was sampled), one log-prob and one weight version per id."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """log p of each id under the engine, at the sampling temperature."""
    text: str
    version: int
    """The number of publishes that the weights had seen; of several the smallest."""
    stopped: bool
    """False where the token limit cut it."""
    tokens_in: int = 0
    """Tokens of the prompt and ..."""
    tokens_out: int = 0
    """... of the answer as a server counted them, where ids are no tokens (chat_policy.py); 0: ids are tokens."""
    later: tuple[tuple[int, int], ...] = ()
    """(first id, version) of each span after the first, where weights were published in between (policy.in_flight)."""

    @property
    def newest(self) -> int:
        """The largest version."""
        return self.later[-1][1] if self.later else self.version

    def versions(self) -> np.ndarray:
        """The version of each id, int64."""
        versions = np.full(len(self.ids), self.version)
        for first, version in self.later:
            versions[first:] = version
        return versions


@dataclass(frozen=True, slots=True)
class Future:
    """How an episode ended that went on from a turn's state: on a fork of its machine, with the same policy and other seeds."""

    reward: float
    turns: int
    """Of the whole episode, those before the fork included."""


@dataclass(frozen=True, slots=True)
class Turn:
    """prompt ids -> completion -> call or format error -> observation."""

    prompt: tuple[int, ...]
    """Every id that the policy saw, from the start of the context."""
    completion: Completion
    call: ToolCall | None
    """None where the completion was malformed; the observation then says why."""
    observation: str
    seconds_model: float = 0.0
    seconds_tool: float = 0.0
    anchor: str = ""
    """Hash of the working tree before the action (pipeline/probe.py); "" = not looked at."""
    passed: float | None = None
    """Share of the visible tests that passed before the action; None = not run."""
    tree: str = ""
    """Hash of the working tree after the action; "" = not looked at (rollout.trees), or nothing that could change it."""
    futures: tuple[Future, ...] = ()
    """rollout.continuations of them, from the state before the action; () = none were played."""
    votes: tuple[int, ...] = ()
    """+1, 0 or -1 of a judge for this turn (jury.py); one that gave none is missing."""
    heard: Heard | None = None
    """Where the action was a question: what the user's answer was, beside its words (user.py)."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a reward channel says of an episode (reward.py)."""

    value: float | None
    """None: it came to no answer."""
    why: str = ""
    """Why not."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at a task. reward None = not graded (INFRA); 0.0 = graded zero."""

    episode_id: str
    group_id: str
    instance_id: str
    turns: tuple[Turn, ...]
    stop: Stop
    patch: str
    verdict: Verdict | None
    error: str = ""
    """For INFRA and RESOURCE: what failed, in one line."""
    retries: int = 0
    """How many earlier attempts the infrastructure ate."""
    seconds: float = 0.0
    prefix: tuple[Turn, ...] = ()
    """Recorded turns of another episode that this one started from: context of its first prompt, never credited or trained."""
    passed: float | None = None
    """Share of the visible tests that passed after its last turn (reward.kind visible_tests); None = not run."""
    scored: Scored | None = None
    """By the reward channel; None: credit sees the verdict."""
    plain_start: tuple[int, ...] = ()
    """What its first prompt would have been without the demonstration in it (rollout.demonstration); () = there was none."""

    @property
    def played(self) -> tuple[Turn, ...]:
        """Every turn that its machine has seen, those that it started from included."""
        return (*self.prefix, *self.turns)

    @property
    def drifted(self) -> bool:
        """Whether the simulated user is no more who it was meant to be."""
        return any(turn.heard is not None and turn.heard.drifted for turn in self.played)

    @property
    def reward(self) -> float | None:
        """The verdict's reward, which is the truth; None where there is none."""
        return self.verdict.reward if self.verdict else None

    @property
    def signal(self) -> float | None:
        """What credit sees; None where there is nothing to see."""
        return self.reward if self.scored is None else self.scored.value


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task at one step; INFRA episodes stay in the record, out of the statistics."""

    group_id: str
    instance_id: str
    step: int
    episodes: tuple[Episode, ...]


class Policy(Protocol):
    """What acts: token ids in, token ids and log-probs out."""

    version: int
    """The number of publishes that its weights have seen."""

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """One completion; PolicyError when the engine fails. The seed belongs to one turn of one episode: siblings get different ones."""
        ...

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """log p(ids[t] | ids[:t]) for t >= 1, shape (T,) float32, 0 at t = 0; at the sampling temperature.

        wanted_T: bool, where it is asked for; elsewhere it may be 0. None: everywhere.
        """
        ...

    async def load(self, folder: Path, version: int) -> Digests:
        """Take the weights of a safetensors folder, without a restart; the digest of each as it is held afterwards."""
        ...

    async def close(self) -> None:
        """Stop what this policy started."""
        ...


class Learner(Protocol):
    """What learns."""

    def step(self, batch: Batch) -> dict[str, float]:
        """One pass over the batch (one or more optimiser steps); metrics with keys loss/..., optim/..."""
        ...

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """log p of each token under the current weights, shape (T,) each, 0 at t = 0; at the sampling temperature."""
        ...

    def entropies(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The entropy, in nats, of the distribution at each token that carries loss, shape (T,) each, 0 elsewhere."""
        ...

    def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
        """The `count` likeliest tokens (at most all that there are) at each token that carries loss, at the sampling temperature."""
        ...

    def export(self, folder: Path, *, whole: bool = True) -> Digests:
        """Write safetensors that transformers and vLLM load; the digest of each weight that an engine must hold then.

        Not `whole`: perhaps less, but all that an engine needs which started from the same model.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write a checkpoint: weights, optimiser, schedule, step."""
        ...

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        ...

    def close(self) -> None:
        """Stop the ranks."""
        ...
