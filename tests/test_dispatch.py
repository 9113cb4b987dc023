"""Episodes on other nodes: recorded before they go on, continued elsewhere when a node is lost, never counted twice. No Ray here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipeline.dispatch as dispatch_module
from pipeline.collect import Schedule, collect
from pipeline.config import RolloutConfig
from pipeline.dispatch import Dispatcher, NodeLost
from pipeline.fake import SlowPolicy
from pipeline.journal import Journal
from pipeline.node import Event, NodeDiary, Order, Outbox, RolloutNode, Took
from pipeline.recover import train_through
from pipeline.rig import Rig, Slot, remote_rig
from pipeline.train import World, train
from pipeline.types import Completion, EngineDied, NodesLost, Policy, Turn
from tests.toy_loop import CHAT, RIGHT, make_config, make_task, make_world

TASK = make_task(0)
TURN = Turn((1, 2), Completion((3,), (-0.5,), "x", 0, True), None, "", 0.1)


class NearNode(RolloutNode):
    """A node in this process; `lose` takes its power away, `hang` makes it silent."""

    def __init__(self, name: str, rig: Rig, policies: Sequence[Policy]) -> None:
        @asynccontextmanager
        async def opener() -> AsyncIterator[Rig]:
            yield rig

        super().__init__(opener, policies)
        self.name, self.lost, self.hangs, self.begun = name, asyncio.Event(), False, 0

    async def begin(self, order: Order) -> None:
        if self.lost.is_set():
            raise NodeLost("gone")
        self.begun += 1
        await super().begin(order)

    async def take(self, kept: int, seconds: float) -> list[Event]:
        if self.hangs:
            await asyncio.sleep(3600)
        asked, lost = asyncio.create_task(super().take(kept, seconds)), asyncio.create_task(self.lost.wait())
        await asyncio.wait([asked, lost], return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if self.lost.is_set():
            asked.cancel()
            raise NodeLost("gone")
        return await asked

    def kill(self) -> None:
        self.lost.set()
        for task in self._playing.values():
            task.cancel()


@asynccontextmanager
async def spread(world: World, count: int = 2, room: int = 4, policy: Policy | None = None) -> AsyncIterator[tuple[World, list[NearNode]]]:
    """The world with its episodes on nodes."""
    policies = [policy or world.policy]
    nodes = [NearNode(f"node {number}", world.rig, policies) for number in range(count)]
    for node in nodes:
        await node.open()
    async with Dispatcher(nodes, policies, room) as dispatcher:
        rig = remote_rig(CHAT, world.rig.rollout, world.rig.context, dispatcher)
        yield replace(world, rig=rig, policy=policies[0]), nodes
    for node in nodes:
        await node.close()


async def test_a_run_on_nodes_is_the_run_on_one_machine(tmp_path: Path) -> None:
    config, here = make_config(4), make_world()
    with Journal(tmp_path / "here") as journal:
        await train(config, journal, here)
        expected = {row.episode_id: (row.reward, row.turns) for row in journal.rows()}
    async with spread(make_world()) as (world, nodes):
        with Journal(tmp_path / "there") as journal:
            await train(config, journal, world)
            assert {row.episode_id: (row.reward, row.turns) for row in journal.rows()} == expected
            assert not journal.ledger().open_turns
        np.testing.assert_array_equal(await world.policy.logprobs(CHAT.write(RIGHT)), await here.policy.logprobs(CHAT.write(RIGHT)))
        assert all(node.begun for node in nodes), "a node had nothing to do"


async def test_a_turn_is_safe_when_the_owner_says_so_and_not_before() -> None:
    outbox, order = Outbox(), Order(3, TASK, Slot("e", "g"), RolloutConfig(), (), 0, 0)
    diary = NodeDiary(outbox, order, make_world().policy)
    diary.record_turn("e", [TURN])
    kept = asyncio.create_task(diary.kept("e"))
    assert await outbox.take(0, 1.0) == [Took(3, TURN)]
    assert await outbox.take(0, 0.05) == [Took(3, TURN)], "what the owner has not confirmed is told again"
    await asyncio.sleep(0.02)
    assert not kept.done()
    assert await outbox.take(1, 0.05) == []
    await asyncio.wait_for(kept, 1.0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["lose", "hang"])
async def test_episodes_of_a_lost_node_go_on_elsewhere_after_their_last_turn(tmp_path: Path, monkeypatch, how: str) -> None:
    monkeypatch.setattr(dispatch_module, "SILENCE", 0.3)
    monkeypatch.setattr(dispatch_module, "WAIT", 0.1)
    config = make_config(1)
    with Journal(tmp_path / "whole") as journal:
        await train(config, journal, make_world())
        expected = {row.episode_id: (row.reward, row.turns) for row in journal.rows()}
    slow = make_world()
    async with spread(slow, policy=SlowPolicy(0.02, slow.policy)) as (world, nodes):

        async def lose() -> None:
            await until(lambda: len(journal.ledger().open_turns) >= 4)
            nodes[0].hangs = how == "hang"
            if how == "lose":
                nodes[0].kill()

        with Journal(tmp_path / "lost") as journal:
            await asyncio.gather(train(config, journal, world), lose())
            assert {row.episode_id: (row.reward, row.turns) for row in journal.rows()} == expected
            assert [what for _, what, _ in journal.ledger().events if what == "resumed"], "no episode went on after its last turn"
            assert not [what for _, what, _ in journal.ledger().events if what in ("cut", "forgotten")]
        assert nodes[0].lost.is_set()


async def test_a_run_without_a_node_is_opened_again(tmp_path: Path) -> None:
    opened = []

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        slow = make_world()
        async with spread(slow, count=1, policy=SlowPolicy(0.01, slow.policy)) as (world, nodes):
            opened.append(nodes)
            if len(opened) == 1:
                asyncio.get_running_loop().call_later(0.1, nodes[0].kill)
            yield world

    with Journal(tmp_path) as journal:
        await train_through(make_config(2), journal, open_world)
        assert len(journal.rows()) == 2 * 2 * 8 and journal.steps()[1]["train/restarts"] == 1
    assert len(opened) == 2


class DyingEngine(SlowPolicy):
    """Its process is gone."""

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        raise EngineDied("gone")


async def test_what_ends_an_episode_that_is_no_episodes_failure_reaches_the_owner(tmp_path: Path) -> None:
    base = make_world()
    async with spread(base, policy=DyingEngine(0, base.policy)) as (world, _):
        with Journal(tmp_path) as journal:
            with pytest.raises(EngineDied):
                await train(make_config(1), journal, world)
            assert not journal.rows()


async def test_no_nodes_no_wait(tmp_path: Path) -> None:
    async with spread(make_world(), count=1) as (world, nodes):
        nodes[0].kill()
        with pytest.raises(NodesLost):
            async for _ in collect(world.policy, world.tasks, world.rig, Schedule(steps=1)):
                pass
