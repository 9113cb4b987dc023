"""A run opens what it has lost again and goes on, within a bound, and a stall says who waits for whom."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.fake import SlowPolicy, SoftmaxLearner
from pipeline.journal import Journal
from pipeline.ranks import RankError
from pipeline.recover import Stalled, train_through, watch
from pipeline.train import World, train
from pipeline.types import Batch, Completion, EngineDied, NodesLost
from tests.toy_loop import CHAT, RIGHT, TEXTS, make_config, make_world


class LosingLearner(SoftmaxLearner):
    """Loses a rank, or what else is lost, at its n-th step and at each one after it."""

    def __init__(self, left: int, loss: Exception) -> None:
        super().__init__(CHAT, TEXTS)
        self.left, self.loss = left, loss

    def step(self, batch: Batch) -> dict[str, float]:
        self.left -= 1
        if self.left <= 0:
            raise self.loss
        return super().step(batch)


LOSSES = [RankError("killed"), EngineDied("gone"), NodesLost("none"), Stalled("long")]


def read_all(folder: Path) -> list[str]:
    return [file.read_text() for file in folder.iterdir()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda one: type(one).__name__)
async def test_a_run_that_loses_a_part_opens_it_again_and_ends_with_the_same_weights(tmp_path: Path, loss: Exception) -> None:
    config, whole, opened = make_config(6), make_world(), []
    with Journal(tmp_path / "whole") as journal:
        await train(config, journal, whole)

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        opened.append(make_world(learner=None if len(opened) == 2 else LosingLearner(3, loss)))
        yield opened[-1]

    with Journal(tmp_path / "lost") as journal:
        await train_through(config, journal, open_world)
        assert len(journal.rows()) == 6 * 2 * 8
        assert journal.steps()[5]["train/restarts"] == 2
    assert len(opened) == 3
    one, other = [await world.policy.logprobs(CHAT.write(RIGHT)) for world in (whole, opened[-1])]
    np.testing.assert_array_equal(one, other)


async def test_a_loss_that_comes_back_without_a_step_in_between_ends_the_run(tmp_path: Path) -> None:
    opened = []

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        opened.append(make_world(learner=LosingLearner(1, RankError("no memory"))))
        yield opened[-1]

    with Journal(tmp_path) as journal, pytest.raises(RankError, match="no memory"):
        await train_through(make_config(3, restarts=2), journal, open_world)
    assert len(opened) == 3


async def test_what_is_no_loss_of_a_part_is_not_tried_again(tmp_path: Path) -> None:
    opened = []

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        opened.append(make_world(learner=LosingLearner(1, KeyError("ours"))))
        yield opened[-1]

    with Journal(tmp_path) as journal, pytest.raises(KeyError, match="ours"):
        await train_through(make_config(3), journal, open_world)
    assert len(opened) == 1


async def wait_for_an_answer() -> None:
    await asyncio.Event().wait()


async def test_a_stall_says_who_waits_for_whom_and_is_a_loss(tmp_path: Path) -> None:
    async def hang() -> None:
        await asyncio.create_task(wait_for_an_answer(), name="episode 7")

    with pytest.raises(Stalled, match="who waits for whom"):
        await watch(hang(), lambda: 1.0, 0.2, tmp_path)
    (told,) = read_all(tmp_path)
    assert "wait_for_an_answer (test_recover.py:" in told.split("episode 7: ")[1].splitlines()[0]
    assert "thread MainThread" in told
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "train"]


class HangingPolicy(SlowPolicy):
    """Answers so many requests, and no more."""

    answers = 20

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        self.answers -= 1
        if self.answers < 0:
            await wait_for_an_answer()
        return await super().sample(prompt, max_tokens, seed)


async def test_a_run_that_stalls_is_opened_again_and_goes_on(tmp_path: Path) -> None:
    opened = []

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        world = make_world()
        opened.append(world if opened else replace(world, policy=HangingPolicy(0.0, world.policy)))
        yield opened[-1]

    with Journal(tmp_path) as journal:
        await train_through(make_config(2, stall_seconds=1), journal, open_world)
        assert journal.steps()[1]["train/restarts"] == 1 and len(journal.rows()) == 2 * 2 * 8
        assert "resumed" in {what for _, what, _ in journal.ledger().events}
    told = read_all(tmp_path / "logs")[0]
    assert "00000.00000.toy-" in told and "HangingPolicy.sample" in told


async def test_work_that_gets_on_is_no_stall(tmp_path: Path) -> None:
    beats = iter(range(1000))
    await watch(asyncio.sleep(0.5), lambda: float(next(beats)), 0.1, tmp_path)
    assert not read_all(tmp_path)


async def test_work_that_is_cancelled_is_cancelled(tmp_path: Path) -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    task = asyncio.create_task(watch(work(), lambda: 1.0, 60, tmp_path))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
