"""The history of a run's metrics -> what a person should look at, in plain words; pure functions, knows nothing of runs.

Each rule looks at the end of the history and compares it with fixed bounds or with the run's own beginning. A step that lacks a metric
(skipped, nothing graded) is passed over. Bounds are wide on purpose: an alarm that healthy runs raise is soon read by nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

History = Sequence[Mapping[str, float]]
"""Metrics of steps in their order, the newest last."""

FIRST = 3
"""Steps that say how a run began."""
LAST = 3
"""Steps that say how it is now. Both are medians: one odd batch is no alarm, whatever its size."""
PATIENCE = 5
"""Steps without a reward, or without a signal, in a row. Where a tenth of 64 episodes is resolved, one such step has p = 0.001."""
ENTROPY_SHARE = 0.2
"""Of the first entropy: a fall to a half is usual as a policy learns ..."""
ENTROPY_FLOOR = 0.1
"""... and nats below which nearly every token is certain, so that the episodes of a group become the same."""
MISMATCH_GROWTH = 3.0
"""Times the first mismatch: it varies by less than 2 with the texts of a batch ..."""
MISMATCH_FLOOR = 0.02
"""... and nats below which it is rounding: bfloat16 alone gives 0.007 (docs/LOG.md)."""
REPEATED = 0.3
"""Share of turns that say what the turn before said: a command is seldom worth repeating."""
DRIFTED = 0.3
"""Share of the episodes with a verdict whose simulated user drifted: what is left is no fair sample any more."""
TRUNCATED_RISE = 0.25
"""More of the episodes than at first ..."""
TRUNCATED = 0.5
"""... and at least this share of them run into a limit."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something to look at."""

    kind: str
    first: int
    """The step at which it began ..."""
    last: int
    """... and the last at which it held."""
    text: str
    """As of its last step."""


def find_alarms(steps: Mapping[int, Mapping[str, float]]) -> tuple[Alarm, ...]:
    """All alarms of a run in the order in which they began; one that ended and came back is two."""
    found: list[Alarm] = []
    going: dict[str, Alarm] = {}
    history: list[Mapping[str, float]] = []
    for step, metrics in sorted(steps.items()):
        history.append(metrics)
        texts = look(history)
        found += [alarm for kind, alarm in going.items() if kind not in texts]
        going = {
            kind: replace(going[kind], last=step, text=text) if kind in going else Alarm(kind, step, step, text)
            for kind, text in texts.items()
        }
    return tuple(sorted([*found, *going.values()], key=lambda alarm: (alarm.first, alarm.kind)))


def look(history: History) -> dict[str, str]:
    """Kind -> words, of what holds at the last step."""
    rules = {
        "entropy": find_collapse,
        "mismatch": find_mismatch,
        "no reward": find_no_reward,
        "no signal": find_no_signal,
        "repetition": find_repetition,
        "truncation": find_truncation,
        "drift": find_drift,
    }
    return {kind: text for kind, rule in rules.items() if (text := rule(history))}


def describe_alarm(alarm: Alarm) -> str:
    """One line: since when, and what."""
    until = f"step {alarm.first}" if alarm.first == alarm.last else f"steps {alarm.first} to {alarm.last}"
    return f"{alarm.kind}, {until}: {alarm.text}"


def find_collapse(history: History) -> str:
    """The policy has become nearly certain of every token."""
    ends = _ends(history, "loss/entropy")
    if ends is None or ends[1] > min(ENTROPY_FLOOR, ENTROPY_SHARE * ends[0]):
        return ""
    return (
        f"the entropy fell from {ends[0]:.3f} to {ends[1]:.3f} nats a token: the episodes of a group become the same and give no signal; "
        "raise loss.eps_high or loss.entropy_coef, lower optim.lr, or go back to an earlier checkpoint"
    )


def find_mismatch(history: History) -> str:
    """Learner and engine disagree more and more on what was sampled."""
    ends = _ends(history, "loss/delta_mean")
    if ends is None or ends[1] < max(MISMATCH_FLOOR, MISMATCH_GROWTH * ends[0]):
        return ""
    return (
        f"the log-probs of learner and engine differ by {ends[1]:.4f} nats a token, {ends[0]:.4f} at first: the update is more and more "
        "off-policy; set loss.correction_level, or look for a difference of precision"
    )


def find_no_reward(history: History) -> str:
    """Nothing is ever resolved."""
    values = _recent(history, "reward/resolved", PATIENCE)
    if not values or any(values):
        return ""
    return f"no episode of the last {PATIENCE} steps was resolved: choose easier tasks, fine-tune first, or look at an episode"


def find_no_signal(history: History) -> str:
    """Some are resolved, and no group is mixed."""
    values, rewards = _recent(history, "batch/kept_groups", PATIENCE), _recent(history, "reward/resolved", PATIENCE)
    if not values or any(values) or not any(rewards):
        return ""
    return (
        f"no group of the last {PATIENCE} steps had a signal although {fmean(rewards):.0%} of the episodes were resolved: tasks are either "
        "too easy or too hard; choose others (greengrad curriculum) or raise rollout.group_size"
    )


def find_repetition(history: History) -> str:
    """Turns say what the turn before said."""
    values = _recent(history, "batch/repeated_turn_rate", LAST)
    if not values or median(values) < REPEATED:
        return ""
    return f"{median(values):.0%} of the turns say, word for word, what the turn before said: the policy is in a loop; look at an episode"


def find_truncation(history: History) -> str:
    """More and more episodes run into a limit."""
    ends = _ends(history, "batch/truncated_rate")
    if ends is None or ends[1] < max(TRUNCATED, ends[0] + TRUNCATED_RISE):
        return ""
    return (
        f"{ends[1]:.0%} of the episodes run into a limit (turns, context or time), {ends[0]:.0%} at first: they grow longer or loop; "
        "look at one, and at rollout.max_turns, model.context and credit.truncated"
    )


def find_drift(history: History) -> str:
    """Many episodes are left out because their simulated user drifted."""
    values = list(zip(*(_recent(history, f"batch/{kind}_episodes", LAST) for kind in ("drifted", "graded")), strict=False))
    shares = [drifted / max(drifted + graded, 1.0) for drifted, graded in values]
    if not shares or median(shares) < DRIFTED:
        return ""
    return (
        f"{median(shares):.0%} of the episodes are left out because their simulated user drifted: an agent that makes it drift escapes its "
        "grade; look at one, and at user.server (docs/methods/interactive.md)"
    )


def _ends(history: History, key: str) -> tuple[float, float] | None:
    """The median of the first and of the last recorded values; None while they overlap."""
    values = [metrics[key] for metrics in history if key in metrics]
    return (median(values[:FIRST]), median(values[-LAST:])) if len(values) >= FIRST + LAST and key in history[-1] else None


def _recent(history: History, key: str, count: int) -> list[float]:
    """The last `count` recorded values; none while there are fewer."""
    values = [metrics[key] for metrics in history if key in metrics][-count:]
    return values if len(values) == count and key in history[-1] else []
