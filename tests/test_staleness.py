"""Asynchronous rollouts: no token older than train.max_lag is trained on, every episode once, also after a kill."""

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import build_batch
from pipeline.codec import decode_episode, encode_episode
from pipeline.config import Config, CreditConfig, LossConfig, RolloutConfig, TrainConfig
from pipeline.config_io import dump_config, load_config
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.ledger import check_journal
from pipeline.staleness import enter, measure_staleness, token_lags
from pipeline.train import World, train
from pipeline.types import Batch, Completion, Episode, Group, Stop, Turn
from pipeline.weights import Digests
from tasks import Outcome, Task, Verdict
from tests.toy_loop import CHAT, TEXTS, DyingLearner, grade_text, make_config, make_world

ENGINE = LossConfig(old_logprobs="engine")


def asynchronous(steps: int, max_lag: int, on_stale: str = "wait", **rollout_keys: object) -> Config:
    rollout = RolloutConfig(**{"tasks_per_step": 2, "group_size": 4, "max_turns": 4, **rollout_keys})  # type: ignore[arg-type]
    made = TrainConfig(steps=steps, max_lag=max_lag, on_stale=on_stale)  # type: ignore[arg-type]
    return make_config(steps).model_copy(update={"rollout": rollout, "train": made, "loss": ENGINE})


def fit(world: World, config: Config) -> World:
    return replace(world, rig=replace(world.rig, rollout=config.rollout, retry_seconds=0.0))


class Slow:
    """Durations of this process's engine, learner and graders, up to so many milliseconds each."""

    def __init__(self, seed: int, most: Sequence[int]) -> None:
        self._draw = random.Random(seed)
        self._engine, self._learner, self._grader = most

    def seconds(self, what: str) -> float:
        return self._draw.random() * getattr(self, f"_{what}") / 1000

    def world(self, config: Config) -> World:
        made = make_world()
        return fit(replace(made, policy=SlowPolicy(self), learner=SlowLearner(self), rig=replace(made.rig, grade=self.grade)), config)

    async def grade(self, task: Task, patch: str) -> Verdict:
        await asyncio.sleep(self.seconds("grader"))
        return await grade_text(task, patch)


class SlowPolicy(SoftmaxPolicy):
    def __init__(self, slow: Slow) -> None:
        super().__init__(CHAT, TEXTS)
        self._slow = slow

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """In two halves, so that a publish may come in between: its tokens are of both versions."""
        await asyncio.sleep(self._slow.seconds("engine"))
        first = self.version
        found = await super().sample(prompt, max_tokens, seed)
        await asyncio.sleep(self._slow.seconds("engine"))
        return replace(found, version=first, later=((1, self.version),) if self.version > first else ())


class SlowLearner(SoftmaxLearner):
    """Keeps what it was given."""

    def __init__(self, slow: Slow) -> None:
        super().__init__(CHAT, TEXTS)
        self._slow = slow
        self.batches: list[Batch] = []

    def step(self, batch: Batch) -> dict[str, float]:
        time.sleep(self._slow.seconds("learner"))
        self.batches.append(batch)
        return super().step(batch)


def lags_of(journal: Journal) -> dict[int, np.ndarray]:
    """Step -> the lag of each of its tokens, from the record alone."""
    before, found = 0, {}
    for step, metrics in journal.steps().items():
        found[step] = np.concatenate([token_lags(episode, before) for episode in journal.episodes(step)])
        before = int(metrics["train/version"])
    return found


def check_once(journal: Journal, config: Config) -> None:
    names = [row.episode_id for row in journal.rows()]
    assert len(set(names)) == len(names) == config.train.steps * config.rollout.tasks_per_step * config.rollout.group_size


durations = st.tuples(*[st.sampled_from((0, 1, 4))] * 3)


@given(st.integers(0, 2**32), durations, st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_whatever_takes_how_long_no_token_is_older_than_max_lag(seed: int, most: tuple[int, int, int], max_lag: int) -> None:
    config = asynchronous(5, max_lag)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        asyncio.run(train(config, journal, Slow(seed, most).world(config)))
        check_once(journal, config)
        for step, lags in lags_of(journal).items():
            assert lags.min() >= 0 and lags.max() <= max_lag
            assert journal.steps()[step]["rollout/staleness_max"] == lags.max()
            assert journal.steps()[step]["rollout/stale_tokens"] == 0


@given(st.integers(0, 2**32), durations, st.integers(0, 2), st.sampled_from(("mask", "drop")))
@settings(max_examples=12, deadline=None)
def test_what_is_too_old_carries_no_loss_and_the_rest_does(seed: int, most: tuple[int, int, int], max_lag: int, on_stale: str) -> None:
    config = asynchronous(5, max_lag, on_stale)
    world = Slow(seed, most).world(config)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        dump_config(config, Path(folder) / "config.yaml")
        asyncio.run(train(config, journal, world))
        check_once(journal, config)
        assert check_journal(Path(folder), Path(folder)).faults == ()
        assert isinstance(world.learner, SlowLearner)
        episodes = {episode.episode_id: episode for episode in journal.episodes()}
        for version, batch in enumerate(world.learner.batches):  # each is published
            for sample in batch.samples:
                lags = token_lags(episodes[sample.episode_id], version)
                trained = int(sample.mask_T.sum())
                assert trained == (lags <= max_lag).sum() and (on_stale == "mask" or trained == len(lags))
                assert not sample.advantages_T[~sample.mask_T].any() and not sample.logprobs_T[~sample.mask_T].any()


class WaitingLearner(SoftmaxLearner):
    """Its first step ends when an episode of the next step has begun to sample."""

    def __init__(self) -> None:
        super().__init__(CHAT, TEXTS)
        self.stepping, self.sampled, self.overlapped = False, threading.Event(), False

    def step(self, batch: Batch) -> dict[str, float]:
        if not self.stepping:
            self.stepping = True
            self.overlapped = self.sampled.wait(10)
        return super().step(batch)


class WatchedPolicy(SoftmaxPolicy):
    def __init__(self, learner: WaitingLearner) -> None:
        super().__init__(CHAT, TEXTS)
        self._learner = learner

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        await asyncio.sleep(0.001)
        if self._learner.stepping:
            self._learner.sampled.set()
        return await super().sample(prompt, max_tokens, seed)


async def test_with_a_lag_the_next_episodes_sample_while_the_learner_trains(tmp_path: Path) -> None:
    config = asynchronous(3, 1, group_size=8)
    learner = WaitingLearner()
    world = fit(replace(make_world(), policy=WatchedPolicy(learner), learner=learner), config)
    one_at_a_time = asyncio.Semaphore(1)  # so that some episodes of the next step are left when the first step is complete
    play = world.rig.machines.lease
    world = replace(world, rig=replace(world.rig, machines=Queue(one_at_a_time, play)))
    with Journal(tmp_path) as journal:
        await train(config, journal, world)
        assert learner.overlapped
        assert max(lags.max() for lags in lags_of(journal).values()) == 1


class Queue:
    """Machines, one after the other in the order of asking."""

    def __init__(self, room: asyncio.Semaphore, lease) -> None:  # type: ignore[no-untyped-def]
        self._room, self._lease = room, lease

    def lease(self, image, *, begun=None):  # type: ignore[no-untyped-def]
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def queued():  # type: ignore[no-untyped-def]
            async with self._room, self._lease(image, begun=begun) as machine:
                yield machine

        return queued()


# --- the door, by hand ---------------------------------------------------------------------------------------------


def episode(name: str, *completions: Completion, solved: bool = True) -> Episode:
    turns, prompt = [], (5, 6)
    for completion in completions:
        turns.append(Turn(prompt, completion, None, ""))
        prompt = (*prompt, *completion.ids, 8)
    return Episode(name, "g", "t", tuple(turns), Stop.SUBMITTED, "", Verdict("t", Outcome.RESOLVED if solved else Outcome.UNRESOLVED))


def said(version: int, *later: tuple[int, int]) -> Completion:
    return Completion((1, 2, 3), (-0.1, -0.2, -0.3), "", version, True, later=later)


OLD = episode("old", said(3), said(4, (1, 5)))
"""Versions 3 3 3 4 5 5."""
NEW = episode("new", said(5), said(6), solved=False)
MORE = episode("more", said(6))
GROUP = Group("g", "t", 0, (OLD, NEW, MORE))


def test_every_token_of_a_completion_has_its_version_and_keeps_it_in_the_journal() -> None:
    assert token_lags(OLD, 6).tolist() == [3, 3, 3, 2, 1, 1]
    assert decode_episode(encode_episode(OLD)) == OLD
    assert said(2, (1, 4), (2, 7)).versions().tolist() == [2, 4, 7]


def test_wait_refuses_a_token_that_is_too_old_or_of_weights_that_do_not_exist() -> None:
    assert enter([GROUP], 6, TrainConfig(max_lag=3)) == [GROUP]
    with pytest.raises(RuntimeError, match=r"old: sampled by version 3, but the learner is at 6 and train\.max_lag is 2"):
        enter([GROUP], 6, TrainConfig(max_lag=2))
    for on_stale in ("wait", "mask", "drop"):
        with pytest.raises(RuntimeError, match="new: sampled by version 6, but the learner is at 5"):
            enter([GROUP], 5, TrainConfig(max_lag=9, on_stale=on_stale))  # type: ignore[arg-type]


def test_drop_leaves_the_episode_out_of_its_group_and_mask_only_its_old_tokens_out_of_the_loss() -> None:
    credit = CreditConfig(length_threshold=9)
    dropped = enter([GROUP], 6, TrainConfig(max_lag=2, on_stale="drop"))
    assert [one.episode_id for one in dropped[0].episodes] == ["new", "more"]
    assert {sample.episode_id: sample.advantages_T.max() for sample in build_batch(dropped, credit, 9).samples} == {
        "new": 0.0,
        "more": pytest.approx(1.0, abs=1e-3),
    }
    masked = build_batch(enter([GROUP], 6, TrainConfig(max_lag=2, on_stale="mask")), credit, 9, oldest=4)
    (sample,) = (sample for sample in masked.samples if sample.episode_id == "old")
    assert sample.mask_T.tolist() == [False] * 6 + [True] * 3
    assert sample.advantages_T[sample.mask_T].tolist() == pytest.approx([0.7071] * 3, abs=1e-3), "it counts in the group's mean"
    assert np.allclose(sample.logprobs_T[-3:], [-0.1, -0.2, -0.3])
    with pytest.raises(RuntimeError):
        enter([GROUP], 6, TrainConfig(max_lag=2))


def test_the_histogram_by_hand() -> None:
    found = measure_staleness([GROUP], 8, TrainConfig(max_lag=4))
    assert found == {
        "rollout/staleness_mean": pytest.approx((3 * 5 + 4 + 2 * 3 + 3 * 3 + 3 * 2 + 3 * 2) / 15),
        "rollout/staleness_max": 5,
        **{"rollout/staleness_0": 0, "rollout/staleness_1": 0, "rollout/staleness_2": 6 / 15, "rollout/staleness_3": 5 / 15},
        "rollout/staleness_4": 4 / 15,
        "rollout/stale_tokens": 3,
        "rollout/stale_episodes": 1,
    }
    assert measure_staleness([Group("g", "t", 0, ())], 8, TrainConfig()) == {}


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train.max_lag", "1"], "loss.old_logprobs: engine"),
        (["--policy.in_flight", "true"], "policy.in_flight is read only where"),
        (["--policy.in_flight", "true", "--policy.api", "chat", "--policy.url", "http://x"], "policy.in_flight = True is not read"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config(None, ["--tasks.suite", "s", *words], Config)


@pytest.mark.parametrize(
    "words",
    [["--loss.old_logprobs", "engine"], ["--loss.correction_level", "token"], ["--loss.correction_level", "geometric"]],
)
def test_settings_that_correct_for_older_weights_are_taken(words: list[str]) -> None:
    lagging = ["--tasks.suite", "s", "--train.max_lag", "2", "--policy.in_flight", "true"]
    assert load_config(None, [*lagging, *words], Config).train.ahead == 2


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_lag", [1, 2])
@pytest.mark.parametrize("fill", [None, 2])
async def test_a_killed_run_with_several_open_steps_repeats_nothing(tmp_path: Path, max_lag: int, fill: int | None) -> None:
    keys = {} if fill is None else {"fill_groups": fill, "fill_rounds": 3}
    config = asynchronous(6, max_lag, **keys)
    dump_config(config, tmp_path / "config.yaml")
    with Journal(tmp_path) as journal:
        with pytest.raises(KeyboardInterrupt):
            await train(config, journal, fit(make_world(learner=DyingLearner(CHAT, TEXTS)), config))
        finished = {episode.episode_id: episode for episode in journal.episodes()}
        assert journal.next_step < 6
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, "episodes of a run that has ended go on"
    with Journal(tmp_path) as journal:
        await train(config, journal, fit(make_world(), config))
        whole = {episode.episode_id: episode for episode in journal.episodes()}
        assert {name: whole[name] for name in finished} == finished
        assert all(lags.min() >= 0 and lags.max() <= max_lag for lags in lags_of(journal).values())
        if fill is None:
            check_once(journal, config)
    assert check_journal(tmp_path, tmp_path).faults == ()


class DiesBeforeTheCommit(SoftmaxLearner):
    """Dies in its first checkpoint, after the publish, once an episode that the new weights sampled is in the journal."""

    def __init__(self, run: Path) -> None:
        super().__init__(CHAT, TEXTS)
        self._run = run
        self.stepping = False

    def step(self, batch: Batch) -> dict[str, float]:
        self.stepping = True
        return super().step(batch)

    def save(self, folder: Path) -> None:
        with Journal(self._run, readonly=True) as journal:
            end = time.monotonic() + 20
            while newest_version(journal) == 0 and time.monotonic() < end:
                time.sleep(0.01)
        raise KeyboardInterrupt


def newest_version(journal: Journal) -> int:
    return max((turn.completion.version for one in journal.episodes() for turn in one.turns), default=0)


class HeldPolicy(SoftmaxPolicy):
    """Once the learner has begun, nothing is sampled before the first publish."""

    def __init__(self, learner: DiesBeforeTheCommit) -> None:
        super().__init__(CHAT, TEXTS)
        self._learner, self._published = learner, asyncio.Event()

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        await asyncio.sleep(0.001)
        if self._learner.stepping:
            await self._published.wait()
        return await super().sample(prompt, max_tokens, seed)

    async def load(self, folder: Path, version: int) -> Digests:
        held = await super().load(folder, version)
        self._published.set()
        return held


async def test_a_run_killed_between_publish_and_commit_trains_that_step_again_on_the_same_batch(tmp_path: Path) -> None:
    """What was decided stays, also an episode without a verdict; only what the lost weights have sampled is sampled again."""
    config = asynchronous(3, 1, group_size=8, infra_retries=0)
    dump_config(config, tmp_path / "config.yaml")
    failed: list[str] = []

    async def grade(task: Task, patch: str) -> Verdict:
        failed.append(task.instance_id)
        return Verdict(task.instance_id, Outcome.INFRA, "no daemon") if len(failed) == 1 else await grade_text(task, patch)

    learner = DiesBeforeTheCommit(tmp_path)
    world = fit(replace(make_world(), policy=HeldPolicy(learner), learner=learner), config)
    machines = Queue(asyncio.Semaphore(1), world.rig.machines.lease)
    with Journal(tmp_path) as journal:
        with pytest.raises(KeyboardInterrupt):
            await train(config, journal, replace(world, rig=replace(world.rig, machines=machines, grade=grade)))
        assert journal.next_step == 0 and newest_version(journal) == 1
        finished = {one.episode_id: one for one in journal.episodes()}
        decided = journal.batch(0)
        assert decided and [one.stop for one in journal.episodes(0)].count(Stop.INFRA) == 1
    with Journal(tmp_path) as journal:
        await train(config, journal, fit(make_world(), config))
        check_once(journal, config)
        assert journal.batch(0) == decided
        whole = {one.episode_id: one for one in journal.episodes()}
        lost = {name for name, one in finished.items() if max(turn.completion.newest for turn in one.turns) == 1}
        assert lost and {name for name, one in finished.items() if whole[name] != one} <= lost
        assert all(lags.min() >= 0 and lags.max() <= 1 for lags in lags_of(journal).values())
    assert check_journal(tmp_path, tmp_path).faults == ()
