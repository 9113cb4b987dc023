"""Dynamic sampling: rounds until enough groups carry a signal; what is kept, what is counted, and that a killed run keeps the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import build_batch, is_filled
from pipeline.collect import choose_tasks
from pipeline.config import Config, CreditConfig, RolloutConfig
from pipeline.journal import Journal
from pipeline.train import World, resume, train
from pipeline.types import Completion, Episode, Group, Stop, Turn
from tasks import Outcome, Verdict
from tests.toy_loop import CHAT, RIGHT, SUBMIT, TEXTS, DyingLearner, make_config, make_task, make_world

TASKS = [make_task(number) for number in range(5)]


def filling(
    steps: int, fill: int | None = 3, rounds: int = 40, texts: tuple[str, ...] = TEXTS, **world_keys: object
) -> tuple[Config, World]:
    """Groups of two, so that most are constant: rounds of two tasks until `fill` of them are mixed."""
    rollout = RolloutConfig(
        tasks_per_step=2, group_size=2, max_turns=4, fill_groups=fill, **({} if fill is None else {"fill_rounds": rounds})
    )
    world = make_world(texts, **world_keys)  # type: ignore[arg-type]
    config = make_config(steps, save_every=2).model_copy(update={"rollout": rollout})
    return config, replace(world, rig=replace(world.rig, rollout=rollout), tasks=TASKS)


async def test_a_step_takes_rounds_until_the_asked_number_of_groups_carries_a_signal(tmp_path: Path) -> None:
    config, world = filling(4)
    with Journal(tmp_path) as journal:
        await train(config, journal, world)
        steps = list(journal.steps().values())
    tried = [metrics["batch/groups"] for metrics in steps]
    assert all(count % 2 == 0 for count in tried) and len(set(tried)) > 1, tried
    for metrics in steps:
        assert metrics["batch/kept_groups"] == 3 and metrics["batch/missing_groups"] == 0
        assert metrics["batch/dropped_constant"] + metrics["batch/surplus_groups"] + 3 == metrics["batch/groups"]
        assert metrics["batch/thrown_episodes"] == 2 * (metrics["batch/groups"] - 3)
        assert metrics["batch/surplus_groups"] < 2, "a round more than was needed"


async def test_the_rounds_go_on_in_the_sequence_of_shuffles(tmp_path: Path) -> None:
    config, world = filling(3)
    with Journal(tmp_path) as journal:
        await train(config, journal, world)
        groups = [group for step in range(3) for group in journal.groups(step)]
    rounds = len(groups) // 2
    assert rounds > 3
    expected = [task.instance_id for number in range(rounds) for task in choose_tasks(TASKS, number, 2, config.train.seed)]
    assert [group.instance_id for group in groups] == expected


async def test_after_the_last_round_the_step_goes_on_and_says_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, world = filling(1, rounds=3, texts=(SUBMIT,))
    with Journal(tmp_path) as journal, caplog.at_level("INFO", "pipeline.train"):
        await train(config, journal, world)
        (metrics,) = journal.steps().values()
    assert (metrics["batch/groups"], metrics["batch/missing_groups"], metrics["batch/thrown_episodes"]) == (6, 3, 12)
    assert "3 fewer than rollout.fill_groups" in caplog.text and "skipped: no signal" in caplog.text


async def test_a_killed_run_that_fills_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    config, whole = filling(5)
    with Journal(tmp_path / "whole") as journal:
        await train(config, journal, whole)
        expected = [row.episode_id for row in journal.rows()]
    with Journal(tmp_path / "cut") as journal, pytest.raises(KeyboardInterrupt):
        await train(config, journal, filling(5, learner=DyingLearner(CHAT, TEXTS))[1])
    with Journal(tmp_path / "cut") as journal:
        resumed = filling(5)[1]
        await train(config, journal, resumed)
        assert sorted(row.episode_id for row in journal.rows()) == sorted(expected)
    ids = CHAT.write(RIGHT)
    np.testing.assert_array_equal(await resumed.policy.logprobs(ids), await whole.policy.logprobs(ids))


async def test_rounds_that_turn_out_not_to_be_needed_after_a_kill_change_no_later_step(tmp_path: Path) -> None:
    """A kill in the second round, and infra in the first: made again, the first round is enough and the second's episodes are left over."""
    config, whole = filling(4)
    with Journal(tmp_path / "whole") as journal:
        await train(config, journal, whole)
        needed = [journal.steps()[step]["batch/groups"] for step in range(4)]
        expected = [[group.group_id for group in journal.groups(step)] for step in range(4)]
    with Journal(tmp_path / "cut") as journal:
        for extra in filled_beyond(expected[0], config.train.seed):
            journal.record_episode(extra, 0)
        resumed = filling(4)[1]
        await train(config, journal, resumed)
        assert [journal.steps()[step]["batch/groups"] for step in range(4)] == needed
        assert [[group.group_id for group in journal.groups(step)] for step in range(1, 4)] == expected[1:]
        assert len(journal.groups(0)) == len(expected[0]) + 1
        shutil.rmtree(tmp_path / "cut" / "checkpoints")
        again = filling(4)[1]
        await resume(config, journal, again)  # the batches are made from the journal again, left-over episodes included
    ids = CHAT.write(RIGHT)
    for world in (resumed, again):
        np.testing.assert_array_equal(await world.policy.logprobs(ids), await whole.policy.logprobs(ids))


def filled_beyond(groups: list[str], seed: int) -> list[Episode]:
    """Two episodes, one of them resolved, of the group that one more round would have begun with."""
    (task, _) = choose_tasks(TASKS, len(groups) // 2, 2, seed)
    name = f"00000.{len(groups):05d}.{task.instance_id}"
    return list(group(name, YES, NO).episodes)


async def test_without_filling_a_step_is_one_round(tmp_path: Path) -> None:
    config, world = filling(3, fill=None)
    with Journal(tmp_path) as journal:
        await train(config, journal, world)
        assert [metrics["batch/groups"] for metrics in journal.steps().values()] == [2, 2, 2]
        assert all("batch/missing_groups" not in metrics for metrics in journal.steps().values())


def group(name: str, *outcomes: Outcome | None) -> Group:
    turns = (Turn((5, 6), Completion((1,), (-0.1,), "", 0, True), None, ""),)
    episodes = [
        Episode(
            f"{name}.{at}",
            name,
            "task",
            turns,
            Stop.SUBMITTED if outcome else Stop.INFRA,
            "",
            Verdict("task", outcome) if outcome else None,
        )
        for at, outcome in enumerate(outcomes)
    ]
    return Group(name, "task", 0, tuple(episodes))


YES, NO = Outcome.RESOLVED, Outcome.UNRESOLVED
GROUPS = [group("a", NO, NO, NO), group("b", YES, NO, NO), group("c", YES, NO, None), group("d", YES, YES, NO), group("e", NO, YES, NO)]


def test_what_is_kept_are_the_first_groups_in_the_order_of_their_tasks() -> None:
    batch = build_batch(GROUPS, CreditConfig(), 8, fill=2)
    assert sorted({sample.group_id for sample in batch.samples}) == ["b", "c"]
    assert (batch.metrics["batch/surplus_groups"], batch.metrics["batch/missing_groups"]) == (2, 0)
    assert len({sample.group_id for sample in build_batch(GROUPS, CreditConfig(), 8).samples}) == 4


def test_a_group_with_too_few_graded_episodes_does_not_fill() -> None:
    strict = CreditConfig(min_graded=3)
    batch = build_batch(GROUPS, strict, 8, fill=2)
    assert sorted({sample.group_id for sample in batch.samples}) == ["b", "d"]
    assert batch.metrics["batch/too_few_graded"] == 1
    assert is_filled(GROUPS, CreditConfig(), 8, 4) and not is_filled(GROUPS, strict, 8, 4)


def test_a_filling_that_cannot_be_reached_or_is_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than rollout\.fill_rounds can bring: 2 rounds of 4 tasks"):
        RolloutConfig(tasks_per_step=4, fill_groups=9, fill_rounds=2)
    with pytest.raises(ValueError, match="fill_rounds is read only with"):
        RolloutConfig(fill_rounds=2)
