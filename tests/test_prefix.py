"""Training from turn K of recorded episodes: what is started from, that it carries no loss and no credit, that it must replay."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import build_batch
from pipeline.config import Config, PrefixConfig
from pipeline.expert import ScriptedPolicy
from pipeline.fake import MemoryMachines
from pipeline.journal import Journal
from pipeline.ledger import check_run
from pipeline.prefix import choose_prefix, load_prefixes, retell
from pipeline.rollout import Slot, run_episode
from pipeline.suite import evaluate_suite
from pipeline.train import World, train
from pipeline.types import Stop
from sandbox import FakeSandbox
from tests.toy_loop import CHAT, RIGHT, TEXTS, DyingLearner, make_config, make_task, make_world

LOOK = "```view\ncalc.py\n```"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two resolved episodes of each task (look, edit, submit; the second looks twice) and one that is not."""
    run = tmp_path_factory.mktemp("recorded")
    with Journal(run) as journal:
        for task in (make_task(0), make_task(1)):
            for number, texts in enumerate([(LOOK, RIGHT), (LOOK, LOOK, RIGHT), (LOOK,)]):
                slot = Slot(f"{task.instance_id}.{number}", task.instance_id)
                episode = asyncio.run(run_episode(ScriptedPolicy(CHAT, task, texts), task, make_world().rig, slot))
                assert episode.reward == float(RIGHT in texts)
                journal.record_episode(episode, 0)
    return run


def configured(run: Path, turn: int, steps: int = 3) -> Config:
    config = make_config(steps)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"prefix": PrefixConfig(run=run, turn=turn)})})


def with_prefix(world: World, config: Config) -> World:
    return replace(world, rig=replace(world.rig, rollout=config.rollout))


async def test_episodes_start_after_the_recorded_turns_and_only_what_is_sampled_anew_is_trained(recorded: Path, tmp_path: Path) -> None:
    config = configured(recorded, turn=2)
    with Journal(tmp_path) as journal:
        await train(config, journal, with_prefix(make_world(), config))
        groups = journal.groups(0)
    for group in groups:
        prefix = group.episodes[0].prefix
        assert len(prefix) == 1 and all(episode.prefix == prefix for episode in group.episodes)
        for episode in group.episodes:
            first = episode.turns[0]
            assert list(first.prompt) == CHAT.extend(prefix[0].prompt, prefix[0].completion, prefix[0].observation)
            assert len(episode.turns) <= config.rollout.max_turns - 1
    batch = build_batch(groups, config.credit, config.rollout.max_turns)
    of_id = {episode.episode_id: episode for group in groups for episode in group.episodes}
    assert batch.samples
    for sample in batch.samples:
        turns = of_id[sample.episode_id].turns
        assert not sample.mask_T[: len(turns[0].prompt)].any()
        assert sample.mask_T.sum() == sum(len(turn.completion.ids) for turn in turns)
        assert not sample.advantages_T[~sample.mask_T].any()


async def test_what_the_recorded_turns_did_to_the_machine_is_done(recorded: Path) -> None:
    """After a recorded right edit, submitting at once solves the task."""
    rig = make_world().rig
    with Journal(recorded, readonly=True) as journal:
        solved = journal.episode("toy-0.0")
    policy = make_world(("```submit\n```",)).policy
    episode = await run_episode(policy, make_task(0), rig, Slot("e", "g", prefix=solved.turns[:2]))
    assert (episode.stop, episode.reward, len(episode.turns)) == (Stop.SUBMITTED, 1.0, 1)


async def test_turns_that_do_not_replay_are_no_start_and_no_grade(recorded: Path) -> None:
    rig = make_world().rig
    with Journal(recorded, readonly=True) as journal:
        solved = journal.episode("toy-0.0")
    other = MemoryMachines(lambda: FakeSandbox(files={"/testbed/calc.py": b"another file\n"}))
    slot = Slot("e", "g", prefix=solved.turns[:2])
    episode = await run_episode(make_world().policy, make_task(0), replace(rig, machines=other, retry_seconds=0), slot)
    assert episode.stop is Stop.INFRA and episode.reward is None
    assert "the turns that it starts from do not replay: turn 1: observation" in episode.error


async def test_a_killed_run_from_a_prefix_ends_with_the_weights_of_an_undisturbed_one(recorded: Path, tmp_path: Path) -> None:
    config = configured(recorded, turn=2, steps=4)
    with Journal(tmp_path / "whole") as journal:
        whole = with_prefix(make_world(), config)
        await train(config, journal, whole)
    with Journal(tmp_path / "cut") as journal, pytest.raises(KeyboardInterrupt):
        await train(config, journal, with_prefix(make_world(learner=DyingLearner(CHAT, TEXTS)), config))
    with Journal(tmp_path / "cut") as journal:
        resumed = with_prefix(make_world(), config)
        await train(config, journal, resumed)
    assert check_run(tmp_path / "cut")[0].faults == ()
    np.testing.assert_array_equal(*[await world.policy.logprobs(CHAT.write(RIGHT)) for world in (whole, resumed)])


def test_a_turn_is_counted_from_the_start_or_from_the_end_and_groups_take_the_episodes_in_turn(recorded: Path) -> None:
    tasks = [make_task(0), make_task(1)]
    from_start = load_prefixes(PrefixConfig(run=recorded, turn=2), CHAT, tasks)
    from_end = load_prefixes(PrefixConfig(run=recorded, turn=-1), CHAT, tasks)
    with Journal(recorded, readonly=True) as journal:
        first, second = journal.episode("toy-0.0"), journal.episode("toy-0.1")
    assert from_start["toy-0"] == [first.turns[:1], second.turns[:1]]
    assert from_end["toy-0"] == [first.turns[:2], second.turns[:3]]
    assert [choose_prefix(from_end, "toy-0", step) for step in (0, 1, 2)] == [first.turns[:2], second.turns[:3], first.turns[:2]]
    assert choose_prefix(from_end, "no such task", 0) == ()
    assert list(load_prefixes(PrefixConfig(run=recorded, turn=4), CHAT, tasks)["toy-0"]) == [second.turns[:3]]
    with pytest.raises(ValueError, match="holds no resolved episode of these tasks that has a turn 99"):
        load_prefixes(PrefixConfig(run=recorded, turn=99), CHAT, tasks)


def test_turns_of_another_template_are_written_anew(recorded: Path) -> None:
    with Journal(recorded, readonly=True) as journal:
        turns = journal.episode("toy-0.0").turns
    task = replace(make_task(0), problem_statement="said in other words")
    told = retell(CHAT, task, turns)
    assert list(told[0].prompt) == CHAT.start_prompt(task)
    assert list(told[1].prompt) == CHAT.extend(told[0].prompt, told[0].completion, told[0].observation)
    assert [turn.call for turn in told] == [turn.call for turn in turns] and retell(CHAT, make_task(0), turns) == turns


async def test_an_evaluation_does_not_read_it_and_says_so(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.prefix is read by `train` alone"):
        await evaluate_suite(configured(recorded, 2), [make_task(0)], tmp_path)
