"""What a step is expected to consist of: episodes, turns, tokens; knows no device and no time."""

import math
from dataclasses import dataclass

from .config import Config

DEMONSTRATED = 0.27
"""Share of an episode's tokens that are sampled: 138 of 512 in the quickstart's demonstrations (docs/LOG.md)."""


@dataclass(frozen=True, slots=True)
class Work:
    """A mean episode, and how many."""

    episodes: float
    turns: float
    longest: float
    """Turns of the longest episode."""
    prompt: float
    sampled: float
    """Tokens of a turn."""
    observed: float
    trained_groups: float

    @property
    def length(self) -> float:
        """Tokens of an episode at its end."""
        return self.prompt + self.turns * (self.sampled + self.observed)

    @property
    def context(self) -> float:
        """Tokens before a sampled one, on average."""
        return (self.prompt + self.length) / 2


def expect_work(config: Config) -> Work:
    """placement.episode, completed by the largest that the limits allow."""
    assert config.model is not None
    given, rollout = config.placement.episode, config.rollout
    turns = min(given.turns or rollout.max_turns, rollout.max_turns)
    prompt = given.prompt_tokens or config.model.context / 8
    room = max(config.model.context - prompt, 0.0) / turns
    sampled = min(given.sampled_tokens or DEMONSTRATED * room, rollout.max_new_tokens)
    observed = max(room - sampled, 0.0) if given.observation_tokens is None else given.observation_tokens
    groups, kept = _groups(config)
    return Work(groups * rollout.group_size, turns, rollout.max_turns, prompt, sampled, observed, kept)


def _groups(config: Config) -> tuple[float, float]:
    """Groups sampled and trained on."""
    rollout, signal = config.rollout, config.placement.episode.signal
    if rollout.fill_groups is None:
        return rollout.tasks_per_step, rollout.tasks_per_step * signal
    rounds = min(math.ceil(rollout.fill_groups / (rollout.tasks_per_step * signal)), rollout.rounds)
    return rounds * rollout.tasks_per_step, min(rollout.fill_groups, rounds * rollout.tasks_per_step * signal)


def count_tokens(config: Config, work: Work) -> tuple[float, float]:
    """Tokens computed for gradients, and those of them with loss; a group's prompt is computed once in each micro-batch."""
    size, learner = config.rollout.group_size, config.learner
    own = work.length - work.prompt
    together = max(1, min(size, (learner.micro_tokens - work.prompt) // max(own, 1.0))) if learner.share_prefixes else 1
    computed = size * own + math.ceil(size / together) * work.prompt
    return work.trained_groups * computed, work.trained_groups * size * work.turns * work.sampled
