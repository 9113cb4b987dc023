"""What a step's metrics say beside reward and loss: time by phase, speed, memory; knows no engine and no learner.

Every name that a run writes is in docs/METRICS.md, with its unit. The clock is in the loop only as one line at the end of a phase.
"""

import os
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from tasks import Task

from .goal import Fault, Kind, State
from .memory import resident_bytes
from .task_state import measure_states
from .types import Episode, Group, Stop


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


def measure_traces(groups: Sequence[Group], tasks: Sequence[Task]) -> dict[str, float]:
    """How far the episodes came (ledger/...), and what they asked (user/...; absent where nobody asked)."""
    files = {task.instance_id: task.files for task in tasks}
    episodes = [episode for group in groups for episode in group.episodes if episode.stop is not Stop.INFRA]
    return measure_states([(one, files.get(one.instance_id, ())) for one in episodes]) | measure_dialogues(episodes)


def measure_dialogues(episodes: Sequence[Episode]) -> dict[str, float]:
    """Questions, answers by their faults, and what of the users' requirements got across in the episodes that asked."""
    asking = [one for one in ([turn.heard for turn in episode.turns if turn.heard] for episode in episodes) if one]
    heard = [one for dialogue in asking for one in dialogue]
    if not heard:
        return {}
    wanted = [state for dialogue in asking for kind, state in dialogue[-1].states if kind is Kind.REQUIREMENT]
    return {
        "user/questions": len(heard) / len(episodes),
        "user/asking_rate": len(asking) / len(episodes),
        "user/seconds": sum(one.seconds for one in heard) / len(heard),
        **({"user/told_rate": wanted.count(State.COMPLETE) / len(wanted)} if wanted else {}),
        **{f"user/{fault.value}": float(sum(fault in one.faults for one in heard)) for fault in Fault},
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
