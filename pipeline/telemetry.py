"""What a step's metrics say beside reward and loss: time by phase, speed, memory; knows no engine and no learner.

Every name that a run writes is in docs/METRICS.md, with its unit. The clock is in the loop only as one line at the end of a phase.
"""

import os
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from .memory import resident_bytes
from .types import Episode, Group


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the learner's speed is measured against."""

    token_flops: float
    """Of one trained token: 6 times the parameters (forward 2, backward 4); attention's own part is left out, so it is a lower bound."""
    peak_flops: float
    """What all devices of the learner could do in a second."""


class Clock:
    """Wall time by phase, since the last look."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """What has passed since the last lap was spent on this phase."""
        now = time.monotonic()
        self._times[phase] = self._times.get(phase, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """time/PHASE_seconds and their sum; begins anew."""
        times, self._times = self._times, {}
        return {f"time/{phase}_seconds": seconds for phase, seconds in times.items()} | {"time/step_seconds": sum(times.values())}


def measure_rollout(groups: Sequence[Group], done: Container[str]) -> dict[str, float]:
    """What sampling took; episodes in `done` were sampled by an earlier process, not in this time."""
    fresh = [episode for group in groups for episode in group.episodes if episode.episode_id not in done]
    return {
        "rollout/episodes": float(len(fresh)),
        "rollout/sampled_tokens": float(sum(_sampled(episode) for episode in fresh)),
        "rollout/model_seconds": sum(turn.seconds_model for episode in fresh for turn in episode.turns),
        "rollout/tool_seconds": sum(turn.seconds_tool for episode in fresh for turn in episode.turns),
    }


def _sampled(episode: Episode) -> int:
    return sum(len(turn.completion.ids) for turn in episode.turns)


def measure_speed(metrics: Mapping[str, float], yardstick: Yardstick | None, overlapped: bool = False) -> dict[str, float]:
    """Tokens a second of the two long phases and the learner's FLOPs utilisation; what was not done or is not known has no speed.

    `overlapped`: episodes run all the time, not only while a step's groups are waited for.
    """
    found = {"memory/resident_gb": resident_bytes(os.getpid()) / 1e9}
    if (seconds := metrics.get("time/step_seconds" if overlapped else "time/rollout_seconds")) and metrics.get("rollout/episodes"):
        found["speed/sampled_tokens_per_second"] = metrics["rollout/sampled_tokens"] / seconds
    if seconds := metrics.get("time/learn_seconds"):
        found["speed/trained_tokens_per_second"] = metrics["batch/tokens"] / seconds
        computed = metrics.get("optim/computed_tokens")
        if computed is not None:
            found["speed/computed_tokens_per_second"] = computed / seconds
            if yardstick is not None:
                found["speed/flops_utilisation"] = yardstick.token_flops * computed / seconds / yardstick.peak_flops
    return found
