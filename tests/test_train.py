"""The loop from end to end on fakes: it learns, it resumes to the same weights, it refuses stale tokens."""

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.breaker import InfraStopped
from pipeline.config import Config, CreditConfig, PolicyConfig, TrainConfig
from pipeline.config_io import load_config
from pipeline.fake import MemoryMachines, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.publish import PublishError
from pipeline.train import World, train
from pipeline.weights import Digests
from sandbox import FakeSandbox
from tasks import Outcome, Task, Verdict
from tests.toy_loop import CHAT, RIGHT, SUBMIT, TEXTS, DyingLearner, make_config, make_world


def count_resolved(journal: Journal, step: int) -> int:
    return sum(episode.reward == 1.0 for episode in journal.episodes(step))


def fisher(before: int, after: int, trials: int) -> float:
    """One-sided p that `after` of `trials` is no better than `before` of `trials` (Fisher's exact test)."""
    both = before + after
    ways = [math.comb(trials, k) * math.comb(trials, both - k) for k in range(after, min(both, trials) + 1)]
    return sum(ways) / math.comb(2 * trials, both)


async def test_the_loop_learns_to_resolve_the_toy_task(tmp_path: Path) -> None:
    before = after = 0
    for seed in range(4):
        with Journal(tmp_path / str(seed)) as journal:
            await train(make_config(12, seed), journal, make_world())
            before += count_resolved(journal, 0)
            after += count_resolved(journal, 11)
    assert fisher(before, after, 4 * 16) < 0.01, (before, after)


@pytest.mark.parametrize("save_every", [1, 2, 5])
async def test_a_run_that_dies_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, save_every: int) -> None:
    config = make_config(6, save_every=save_every)
    with Journal(tmp_path / "whole") as journal:
        whole = make_world()
        await train(config, journal, whole)
    with Journal(tmp_path / "cut") as journal:
        with pytest.raises(KeyboardInterrupt):
            await train(config, journal, make_world(learner=DyingLearner(CHAT, TEXTS)))
        finished = {row.episode_id for row in journal.rows()}
        assert finished and journal.next_step < 6
    with Journal(tmp_path / "cut") as journal:
        resumed = make_world()
        await train(config, journal, resumed)
        assert len(journal.rows()) == 6 * 2 * 8
        assert finished <= {row.episode_id for row in journal.rows()}
    assert resumed.policy.version == whole.policy.version > 0
    np.testing.assert_array_equal(await _log_p(resumed), await _log_p(whole))


async def _log_p(world: World) -> np.ndarray:
    return await world.policy.logprobs(CHAT.write(RIGHT))


async def test_a_run_whose_machines_all_fail_stops_and_goes_on_later_as_if_nothing_had_been(tmp_path: Path) -> None:
    async def fail(task: Task, patch: str) -> Verdict:
        return Verdict(task.instance_id, Outcome.INFRA, "no daemon")

    config = make_config(2)
    world = make_world()
    with Journal(tmp_path / "cut") as journal:
        with pytest.raises(InfraStopped, match="no daemon"):
            await train(config, journal, replace(world, rig=replace(world.rig, grade=fail, retry_seconds=0)))
        assert len(journal.rows()) >= config.rollout.infra_stop and journal.next_step == 0
        await train(config, journal, world)
        assert len(journal.rows()) == 2 * 2 * 8 and all(row.outcome != "infra" for row in journal.rows())
    whole = make_world()
    with Journal(tmp_path / "whole") as journal:
        await train(config, journal, whole)
    np.testing.assert_array_equal(await _log_p(world), await _log_p(whole))


async def test_a_step_without_a_mixed_group_is_skipped_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal(tmp_path) as journal, caplog.at_level(logging.INFO, "pipeline.train"):
        await train(make_config(2), journal, make_world((SUBMIT,)))
        assert [metrics["train/version"] for metrics in journal.steps().values()] == [0.0, 0.0]
    assert caplog.text.count("skipped: no signal") == 2
    assert not (tmp_path / "weights").exists()


async def test_what_an_update_that_was_never_committed_has_sampled_is_sampled_again(tmp_path: Path) -> None:
    config = make_config(1)
    with Journal(tmp_path) as journal:
        await train(config, journal, make_world())
        unborn = replace(next(journal.episodes(0)), episode_id="00001.00000.toy-0.00", group_id="00001.00000.toy-0")
        turns = [replace(turn, completion=replace(turn.completion, version=7)) for turn in unborn.turns]
        journal.issue(unborn.episode_id, unborn.group_id, unborn.instance_id, 1)
        journal.record_episode(replace(unborn, turns=tuple(turns)), 1)
    with Journal(tmp_path) as journal:
        await train(make_config(2), journal, make_world())
        assert {turn.completion.version for episode in journal.episodes(1) for turn in episode.turns} == {1}
        told = ("00001.00000.toy-0.00", "forgotten", "version 7 does not exist: the policy is at 1")
        assert journal.ledger().events == [told]


async def test_tokens_of_older_weights_are_refused_at_the_door(tmp_path: Path) -> None:
    world = make_world()
    stale = world.policy.sample

    async def sample_late(prompt, max_tokens, seed):  # type: ignore[no-untyped-def]
        world.policy.version = 0
        completion = await stale(prompt, max_tokens, seed)
        world.policy.version = 1
        return completion

    world.policy.sample = sample_late  # type: ignore[method-assign]
    with Journal(tmp_path) as journal, pytest.raises(RuntimeError, match="sampled by version 0, but the learner is at 1"):
        await train(make_config(1), journal, world)


async def test_the_learner_steps_while_the_engine_sleeps_and_publishes_when_it_is_awake(tmp_path: Path) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def asleep() -> AsyncIterator[None]:
        told.append("sleep")
        yield
        told.append("wake")

    made = make_world()
    step, export = made.learner.step, made.learner.export
    made.learner.step = lambda batch: (told.append("step"), step(batch))[1]  # type: ignore[method-assign]
    made.learner.export = lambda folder, **keys: (told.append("export"), export(folder, **keys))[1]  # type: ignore[method-assign]
    with Journal(tmp_path) as journal:
        await train(make_config(1), journal, replace(made, asleep=asleep))
    assert told[:4] == ["sleep", "step", "wake", "export"]


class DeafPolicy(SoftmaxPolicy):
    """Takes a new version's number, and keeps its old weights; `honest`: and tells which it has."""

    honest = True

    async def load(self, folder: Path, version: int) -> Digests:
        self.version = version
        return self.digests() if self.honest else {"weights": np.load(folder / "weights.npy").tobytes().hex()}


@pytest.mark.parametrize(("honest", "why"), [(True, "1 of 1 weights differ"), (False, "probe tokens")])
async def test_a_publish_that_does_not_arrive_stops_the_run(tmp_path: Path, honest: bool, why: str) -> None:
    made = make_world()
    policy = DeafPolicy(CHAT, TEXTS)
    policy.honest = honest
    world = World(policy, made.learner, made.rig, made.tasks)
    with Journal(tmp_path) as journal, pytest.raises(PublishError, match=f"{why}(.|\n)*does not hold|does not hold(.|\n)*{why}"):
        config = make_config(3)
        await train(config.model_copy(update={"policy": PolicyConfig(publish_tolerance=1e-6)}), journal, world)


EVERY_KIND = [
    CreditConfig(kind="episode_no_std"),
    CreditConfig(kind="leave_one_out"),
    CreditConfig(kind="ms_grpo", format_penalty=1.0, samples="per_turn", draws=6),
    CreditConfig(kind="next_turn", turn_reward="tests"),
    CreditConfig(kind="return_to_go", gamma=0.9),
    CreditConfig(kind="turn_normalised", turn_reward="tests"),
    CreditConfig(kind="gigpo"),
    CreditConfig(kind="mt_grpo", turn_reward="tests"),
    CreditConfig(kind="potential"),
]


@pytest.mark.parametrize("credit", EVERY_KIND, ids=lambda credit: credit.kind)
async def test_every_kind_of_credit_trains_and_resumes_from_the_journal(tmp_path: Path, credit: CreditConfig) -> None:
    rollout = make_world().rig.rollout.model_copy(update={"anchors": True, "visible_tests": "python -m pytest -q"})
    config = make_config(3).model_copy(update={"credit": credit})
    ends = []
    for steps in ((3,), (2, 3)):  # at once; and stopped after two steps, which a new learner repeats from the journal
        with Journal(tmp_path / str(len(steps))) as journal:
            for count in steps:
                world = make_world()
                machines = MemoryMachines(
                    lambda: FakeSandbox(
                        {"sha256sum": b"abc  -", "pytest": b"1 passed, 1 failed in 1s"},
                        {"/testbed/calc.py": b"def add(a, b):\n    return a - b\n"},
                    )
                )
                world = replace(world, rig=replace(world.rig, rollout=rollout, machines=machines))
                await train(config.model_copy(update={"train": TrainConfig(steps=count, save_every=9)}), journal, world)
            ends.append((world.policy.version, await _log_p(world)))
    assert ends[0][0] == ends[1][0] > 0
    np.testing.assert_array_equal(ends[0][1], ends[1][1])


async def test_ms_grpo_yaml_trains_on_fakes(tmp_path: Path) -> None:
    shipped = load_config(Path(__file__).parent.parent / "configs" / "ms_grpo.yaml", [], Config)
    config = make_config(3).model_copy(update={"credit": shipped.credit, "loss": shipped.loss})
    assert (shipped.credit.kind, shipped.credit.samples, shipped.credit.draws) == ("ms_grpo", "per_turn", 64)
    with Journal(tmp_path) as journal:
        await train(config, journal, make_world())
        assert any("publish/version" in metrics for metrics in journal.steps().values())
