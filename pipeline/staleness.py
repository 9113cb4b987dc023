"""How old trained tokens are, in publishes, and what becomes of those that are too old; pure functions, knows no queue and no engine.

A token's lag is the version that it is trained at less the version that sampled it. What `train.on_stale` does about a lag above
`train.max_lag`, and what that favours:

    wait    no token gets so old (collect.py says why); nothing is thrown away, nothing is favoured. The default.
    mask    the token carries no loss and stays in the context, its episode counts in its group: favours the later turns of long episodes,
            whose early turns are those that grow old.
    drop    the episode leaves its group, as if the infrastructure had failed it (no reward, not a reward of 0): favours short episodes,
            because long ones are those that grow old.

Left out for the same reason: over-provisioning, where more episodes start than are needed and the first to end are taken. It favours
short episodes; here the tail of a step runs beside the next steps' episodes instead.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .batch import build_batch
from .config import Config, TrainConfig
from .types import Batch, Episode, Group

LAST_BIN = 4
"""Of the histogram: so many publishes or more."""


class StaleError(RuntimeError):
    """A token that may not be trained on has come to the door: a mistake of ours, or a changed record."""


def token_lags(episode: Episode, version: int) -> np.ndarray:
    """The lag of each sampled token, in its order, int64; empty where nothing was sampled."""
    versions = [turn.completion.versions() for turn in episode.turns]
    return version - np.concatenate(versions) if versions else np.zeros(0, dtype=np.int64)


def is_stale(episode: Episode, version: int, max_lag: int) -> bool:
    """Whether one of its tokens is too old."""
    return bool((token_lags(episode, version) > max_lag).any())


def enter(groups: Sequence[Group], version: int, train: TrainConfig) -> list[Group]:
    """The trainer's door, at `version`: groups without the episodes that `drop` leaves out. StaleError for a token that cannot be here:
    of weights that do not exist yet, or with `wait` one that is too old. What `mask` is about is in build_batch(oldest)."""
    for episode in (episode for group in groups for episode in group.episodes):
        lags = token_lags(episode, version)
        if (lags < 0).any() or (train.on_stale == "wait" and (lags > train.max_lag).any()):
            sampled = version - (lags.max() if lags.min() >= 0 else lags.min())
            raise StaleError(
                f"{episode.episode_id}: sampled by version {sampled}, but the learner is at {version} and train.max_lag is {train.max_lag}"
            )
    if train.on_stale != "drop":
        return list(groups)
    return [replace(group, episodes=tuple(one for one in group.episodes if not is_stale(one, version, train.max_lag))) for group in groups]


def make_batch(config: Config, groups: Sequence[Group], version: int) -> Batch:
    """The batch of a step's groups for a learner at this version: through the door, then credit. The same whenever it is made again."""
    train = config.train
    fresh = enter(groups, version, train)
    rollout, oldest = config.rollout, version - train.max_lag
    short = rollout.fill_short == "skip"
    batch = build_batch(fresh, config.credit, rollout.max_turns, rollout.fill_groups, oldest, skip_short=short)
    left = {episode.episode_id for group in fresh for episode in group.episodes}
    stale = {one.episode_id: "stale" for group in groups for one in group.episodes if one.episode_id not in left}
    return replace(batch, fates=batch.fates | stale)


def measure_staleness(groups: Sequence[Group], version: int, train: TrainConfig) -> dict[str, float]:
    """Mean, maximum and histogram of the lags of all sampled tokens, and what is too old."""
    episodes = [episode for group in groups for episode in group.episodes]
    lags_T = np.concatenate([np.zeros(0, dtype=np.int64), *(token_lags(episode, version) for episode in episodes)])
    if not lags_T.size:
        return {}
    share = np.bincount(np.minimum(lags_T, LAST_BIN), minlength=LAST_BIN + 1) / lags_T.size
    return {
        "rollout/staleness_mean": float(lags_T.mean()),
        "rollout/staleness_max": float(lags_T.max()),
        **{f"rollout/staleness_{lag}": float(share[lag]) for lag in range(LAST_BIN + 1)},
        "rollout/stale_tokens": float((lags_T > train.max_lag).sum()),
        "rollout/stale_episodes": float(sum(is_stale(episode, version, train.max_lag) for episode in episodes)),
    }
