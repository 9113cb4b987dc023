"""Groups -> credit -> Samples and their weights; numpy only, knows no model and no optimiser.

Shapes: G graded episodes of a group, N turns, T tokens of a sample, S samples.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, assert_never

import numpy as np

from .config import CreditConfig
from .credit import assign_credit, has_signal, shape_rewards
from .draw import draw_samples
from .outcomes import Outcomes
from .types import Batch, Episode, Group, Sample, Stop, Turn

TRUNCATED = frozenset({Stop.MAX_TURNS, Stop.CONTEXT_FULL, Stop.TIME})
"""Episodes that a limit ended."""


@dataclass(frozen=True, slots=True)
class CreditedGroup:
    """One group after credit: what counted, what became of it, and its samples (none unless kept)."""

    graded: tuple[Episode, ...]
    ungraded: tuple[Episode, ...]
    """Of the infrastructure, of a user that drifted, or of a reward channel without an answer: in no statistic."""
    fate: Literal["kept", "constant", "too_few", "surplus", "short"]
    mixed: bool
    """The graded outcomes differ."""
    shaped_G: np.ndarray
    samples: tuple[Sample, ...]


def build_batch(
    groups: Sequence[Group], config: CreditConfig, max_turns: int, fill: int | None = None, oldest: int = 0, *, skip_short: bool = False
) -> Batch:
    """The samples of all groups that carry a signal; `samples == ()` means "skipped: no signal", never an error.

    `fill`: of the first so many of them, in the order given; the others are counted as surplus, and what is missing as well. With
    `skip_short`: of so many or of none.
    `oldest`: tokens that an earlier version sampled carry no loss.
    """
    credited = [credit_group(group, config, max_turns, oldest) for group in groups]
    if fill is not None:
        credited = drop_surplus(credited, fill, skip_short)
    samples = tuple(sample for group in credited for sample in group.samples)
    if config.draws and samples:
        samples = draw_samples(samples, config, groups[0].step)
    metrics = measure_groups(credited) | measure_samples(samples)
    if fill is not None:
        metrics["batch/missing_groups"] = fill - metrics["batch/kept_groups"]
    return Batch(samples, metrics, find_fates(credited, config, {sample.episode_id for sample in samples}))


def find_fates(credited: Sequence[CreditedGroup], config: CreditConfig, trained: Container[str]) -> dict[str, str]:
    """What becomes of each episode: "trained", or why it carries no loss."""

    def fate(group: CreditedGroup, episode: Episode) -> str:
        if episode in group.ungraded:
            return "infra" if _is_infra(episode) else "drifted" if episode.drifted else "unjudged"
        if group.fate != "kept" or episode.episode_id in trained:
            return group.fate if group.fate != "kept" else "trained"
        if config.truncated == "drop" and episode.stop in TRUNCATED:
            return "truncated"
        return "not drawn" if config.draws else "no tokens"

    return {episode.episode_id: fate(group, episode) for group in credited for episode in (*group.graded, *group.ungraded)}


def is_filled(groups: Sequence[Group], config: CreditConfig, max_turns: int, fill: int) -> bool:
    """Whether so many groups carry a signal."""
    return sum(credit_group(group, config, max_turns).fate == "kept" for group in groups) >= fill


def drop_surplus(credited: Sequence[CreditedGroup], fill: int, skip_short: bool) -> list[CreditedGroup]:
    """The same groups; those after the first `fill` kept ones give no samples. Where there are fewer, with `skip_short` none does."""
    kept = [index for index, group in enumerate(credited) if group.fate == "kept"]
    if skip_short and len(kept) < fill:
        return [replace(group, fate="short", samples=()) if group.fate == "kept" else group for group in credited]
    late = set(kept[fill:])
    return [replace(group, fate="surplus", samples=()) if index in late else group for index, group in enumerate(credited)]


def credit_group(group: Group, config: CreditConfig, max_turns: int, oldest: int = 0) -> CreditedGroup:
    """Leave INFRA out, then drop the group or turn its episodes into samples with advantages.

    With truncated "drop", an episode that a limit ended still counts in the group's mean and std; it only carries no loss.
    """
    graded = tuple(episode for episode in group.episodes if episode.stop is not Stop.INFRA and episode.signal is not None)
    outcomes = read_outcomes(graded)
    shaped_G = shape_rewards(outcomes, config, max_turns)
    ungraded = tuple(episode for episode in group.episodes if episode not in graded)
    mixed = len(set(outcomes.rewards_G.tolist())) > 1
    if len(graded) < config.min_graded:
        return CreditedGroup(graded, ungraded, "too_few", mixed, shaped_G, ())
    if not has_signal(outcomes, config, max_turns):
        return CreditedGroup(graded, ungraded, "constant", mixed, shaped_G, ())
    samples: list[Sample] = []
    for episode, advantages_N in zip(graded, assign_credit(outcomes, config, max_turns), strict=True):
        if config.truncated == "keep" or episode.stop not in TRUNCATED:
            runs = split_history(episode.turns) if config.samples == "merged" else [[turn] for turn in range(len(episode.turns))]
            samples += merge_turns(episode, advantages_N, np.ones(len(episode.turns), dtype=bool), runs, oldest)
    return CreditedGroup(graded, ungraded, "kept", mixed, shaped_G, tuple(samples))


def read_outcomes(graded: Sequence[Episode]) -> Outcomes:
    """What credit reads of a group's graded episodes; what a turn of theirs lacks is None for the whole group, never zeros."""
    turns = [turn for episode in graded for turn in episode.turns]
    measured = all(turn.passed is not None for turn in turns)
    hashed = all(turn.anchor for turn in turns)
    continued = len({len(turn.futures) for turn in turns}) == 1 and bool(turns[0].futures)
    return Outcomes(
        rewards_G=np.array([episode.signal for episode in graded], dtype=np.float64),
        turns_G=np.array([len(episode.turns) for episode in graded], dtype=np.int64),
        malformed=tuple(np.array([turn.call is None for turn in episode.turns], dtype=bool) for episode in graded),
        passed=tuple(np.array([turn.passed for turn in episode.turns], dtype=np.float64) for episode in graded) if measured else None,
        anchors=tuple(tuple(turn.anchor for turn in episode.turns) for episode in graded) if hashed else None,
        futures=tuple(_futures_of(episode, len(turns[0].futures)) for episode in graded) if continued else None,
    )


def _futures_of(episode: Episode, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and turns of the continuations, shape (N, K)."""
    shape = (len(episode.turns), count)
    rewards = [future.reward for turn in episode.turns for future in turn.futures]
    turns = [future.turns for turn in episode.turns for future in turn.futures]
    return np.array(rewards, dtype=np.float64).reshape(shape), np.array(turns, dtype=np.int64).reshape(shape)


def split_history(turns: Sequence[Turn]) -> list[list[int]]:
    """Indices of turns in runs: within a run each prompt starts with the previous prompt + completion (history was only added to)."""
    runs: list[list[int]] = []
    for index, turn in enumerate(turns):
        if index:
            seen = turns[index - 1].prompt + turns[index - 1].completion.ids
            if turn.prompt[: len(seen)] == seen:
                runs[-1].append(index)
                continue
        runs.append([index])
    return runs


def merge_turns(
    episode: Episode, advantages_N: np.ndarray, loss_N: np.ndarray, runs: Sequence[Sequence[int]] | None = None, oldest: int = 0
) -> list[Sample]:
    """One sample per run of turns (default: those that share their history): each sampled token carries loss once, in its context.

    `loss_N` (bool) says which turns carry loss; the others, and tokens of a version before `oldest`, stay in the context. A run without
    a token of loss gives no sample.
    """
    samples = []
    for run in split_history(episode.turns) if runs is None else runs:
        last = episode.turns[run[-1]]
        ids_T = np.array(last.prompt + last.completion.ids, dtype=np.int64)
        mask_T = np.zeros(len(ids_T), dtype=bool)
        logprobs_T = np.zeros(len(ids_T), dtype=np.float32)
        advantages_T = np.zeros(len(ids_T), dtype=np.float32)
        for index in run:
            turn = episode.turns[index]
            if not loss_N[index]:
                continue
            span = slice(len(turn.prompt), len(turn.prompt) + len(turn.completion.ids))
            fresh = turn.completion.versions() >= oldest
            mask_T[span] = fresh
            logprobs_T[span] = np.where(fresh, turn.completion.logprobs, 0.0)
            advantages_T[span] = np.where(fresh, advantages_N[index], 0.0)
        if mask_T.any():
            samples.append(Sample(episode.episode_id, episode.group_id, ids_T, mask_T, logprobs_T, advantages_T))
    return samples


def measure_groups(credited: Sequence[CreditedGroup]) -> dict[str, float]:
    """Counts, and means over graded episodes; a mean over nothing is left out rather than called 0."""
    graded = [episode for group in credited for episode in group.graded]
    ungraded = [episode for group in credited for episode in group.ungraded]
    metrics = count_fates(credited, ungraded) | measure_rewards(graded, ungraded) | measure_turns(graded)
    if graded:
        metrics |= {
            "reward/mean": float(np.mean(np.concatenate([group.shaped_G for group in credited]))),
            "batch/zero_groups": float(sum(_all_have(group, 0.0) for group in credited)),
            "batch/solved_groups": float(sum(_all_have(group, 1.0) for group in credited)),
        }
    return metrics


def count_fates(credited: Sequence[CreditedGroup], ungraded: Sequence[Episode]) -> dict[str, float]:
    """How many groups and episodes became what."""
    return {
        "batch/groups": float(len(credited)),
        "batch/kept_groups": float(sum(group.fate == "kept" for group in credited)),
        "batch/mixed_groups": float(sum(group.mixed for group in credited)),
        "batch/dropped_constant": float(sum(group.fate == "constant" for group in credited)),
        "batch/too_few_graded": float(sum(group.fate == "too_few" for group in credited)),
        "batch/surplus_groups": float(sum(group.fate == "surplus" for group in credited)),
        "batch/thrown_episodes": float(sum(len(group.graded) for group in credited if group.fate != "kept")),
        "batch/infra_episodes": float(sum(_is_infra(episode) for episode in ungraded)),
        "batch/unjudged_episodes": float(sum(not _is_infra(episode) and not episode.drifted for episode in ungraded)),
        "batch/drifted_episodes": float(sum(not _is_infra(episode) and episode.drifted for episode in ungraded)),
        "batch/graded_episodes": float(sum(len(group.graded) for group in credited)),
    }


def measure_rewards(graded: Sequence[Episode], ungraded: Sequence[Episode]) -> dict[str, float]:
    """The truth of all episodes with a verdict, what credit sees of those that it has, and the gap where both are known."""
    with_verdict = [one for one in [*graded, *ungraded] if not _is_infra(one) and one.reward is not None]
    metrics = {"reward/resolved": float(np.mean([episode.reward for episode in with_verdict]))} if with_verdict else {}
    if graded:
        metrics["reward/channel"] = float(np.mean([episode.signal for episode in graded]))
    if with_verdict and graded:
        metrics["reward/gap"] = metrics["reward/channel"] - float(np.mean([episode.reward for episode in graded]))
    return metrics


def measure_turns(graded: Sequence[Episode]) -> dict[str, float]:
    """How long episodes are, how they end, and how many turns are malformed or repeated."""
    if not graded:
        return {}
    metrics = {
        "batch/turns_mean": float(np.mean([len(episode.turns) for episode in graded])),
        "batch/submit_rate": float(np.mean([episode.stop is Stop.SUBMITTED for episode in graded])),
        "batch/truncated_rate": float(np.mean([episode.stop in TRUNCATED for episode in graded])),
    }
    if turns := [turn for episode in graded for turn in episode.turns]:
        metrics["batch/format_error_rate"] = float(np.mean([turn.call is None for turn in turns]))
        metrics["batch/repeated_turn_rate"] = sum(count_repeats(episode.turns) for episode in graded) / len(turns)
    return metrics


def _is_infra(episode: Episode) -> bool:
    return episode.stop is Stop.INFRA or (episode.reward is None and episode.scored is None)


def _all_have(group: CreditedGroup, reward: float) -> bool:
    return bool(group.graded) and all(episode.signal == reward for episode in group.graded)


def count_repeats(turns: Sequence[Turn]) -> int:
    """Turns in which the policy said, token for token, what it had said in the turn before."""
    return sum(turn.completion.ids == before.completion.ids for before, turn in pairwise(turns))


def measure_samples(samples: Sequence[Sample]) -> dict[str, float]:
    """Sizes of what the learner gets."""
    metrics = {
        "batch/samples": float(len(samples)),
        "batch/tokens": float(sum(sample.mask_T.sum() for sample in samples)),
        "batch/context_tokens": float(sum(len(sample.ids_T) for sample in samples)),
    }
    if samples:
        advantages_T = np.concatenate([sample.advantages_T[sample.mask_T] for sample in samples])
        metrics["batch/advantage_abs_mean"] = float(np.abs(advantages_T).mean())
        metrics["batch/advantage_min"] = float(advantages_T.min())
        metrics["batch/advantage_max"] = float(advantages_T.max())
    return metrics


Aggregation = Literal["token", "episode", "group", "constant"]


def weigh_samples(samples: Sequence[Sample], aggregation: Aggregation, constant_tokens: int = 1) -> np.ndarray:
    """Weight of each loss token of each sample, shape (S,), so that the loss is a plain sum: weights x tokens add up to 1 (not constant).

    token: 1 / all tokens of the batch (DAPO's token mean).  episode, group: 1 / (episodes * tokens of the sample's episode), the same of
    groups; an episode is all its samples (GRPO's and GSPO's own mean is episode).
    constant: 1 / (episodes * constant_tokens), Dr.GRPO: the only one whose expectation is the policy gradient's direction.
    """
    tokens_S = np.array([sample.mask_T.sum() for sample in samples], dtype=np.float64)
    match aggregation:
        case "token":
            return np.full(len(samples), 1.0 / tokens_S.sum())
        case "episode" | "group":
            names = [sample.episode_id if aggregation == "episode" else sample.group_id for sample in samples]
            _, part_S = np.unique(np.array(names), return_inverse=True)
            per_part = np.bincount(part_S, weights=tokens_S)
            return 1.0 / (len(per_part) * per_part[part_S])
        case "constant":
            episodes = len({sample.episode_id for sample in samples})
            return np.full(len(samples), 1.0 / (episodes * constant_tokens))
        case _:
            assert_never(aggregation)
