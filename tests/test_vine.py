"""Continuations: episodes that go on from a turn's state on forks of its machine, what is recorded of them, and the credit they give."""

import asyncio
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from pipeline.action import render
from pipeline.batch import build_batch
from pipeline.codec import decode_episode, encode_episode
from pipeline.collect import Schedule, collect
from pipeline.config import CreditConfig, RolloutConfig
from pipeline.expert import ScriptedPolicy
from pipeline.fake import FailingPolicy, MemoryMachines, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.rollout import Rig, Slot, derive_seed, run_episode
from pipeline.train import train
from pipeline.types import Future, Group, Stop, ToolCall
from sandbox import FakeSandbox, Limits, Pool, ResourceExhausted, SandboxError, diff
from tasks import Outcome, Verdict, grade
from tasks.toy import toy_suite
from tests.toy_loop import CHAT, RIGHT, SUBMIT, TEXTS, WRONG, grade_text, make_config, make_task, make_world

TASK = make_task(0)
SLOT = Slot("e", "g", seed=5)


def make_rig(forks=None, grading=grade_text, **rollout):
    world = make_world()
    config = world.rig.rollout.model_copy(update={"continuations": 3, "infra_retries": 1, **rollout})
    return replace(world.rig, rollout=config, forks=forks or make_world().rig.machines, grade=grading, retry_seconds=0.0)


async def test_every_turn_knows_how_three_others_end_that_go_on_from_its_state():
    rig = make_rig()
    episode = await run_episode(SoftmaxPolicy(CHAT, TEXTS), TASK, replace(rig, rollout=rig.rollout), SLOT)
    assert all(len(turn.futures) == 3 for turn in episode.turns)
    for number, turn in enumerate(episode.turns):
        assert all(number < future.turns <= 4 and future.reward in (0.0, 1.0) for future in turn.futures)
    assert len(rig.forks.made) == 3 * len(episode.turns) and all(machine.closed for machine in rig.forks.made)
    assert len(rig.machines.made) == 1, "they take no machine that episodes wait for"
    assert decode_episode(encode_episode(episode)) == episode


@pytest.mark.parametrize(("first", "worth"), [(RIGHT, 1.0), (WRONG, 0.0)])
async def test_what_the_first_action_did_to_the_files_decides_what_comes_after_it(first, worth):
    """The file is repaired or spoilt for good, whatever is tried later; before that both may happen."""
    script = ScriptedPolicy(CHAT, TASK, (first, "```bash\ntrue\n```", SUBMIT))

    class Then(SoftmaxPolicy):
        """The script on the machine itself, a model on forks: their prompts are the same, their seeds are not."""

        async def sample(self, prompt, max_tokens, seed):
            own = seed in own_seeds
            return await (script if own else super()).sample(prompt, max_tokens, seed)

    own_seeds = {derive_seed(SLOT, turn) for turn in range(4)}
    episode = await run_episode(Then(CHAT, TEXTS), TASK, make_rig(continuations=40), SLOT)
    assert episode.reward == worth
    values = [np.mean([future.reward for future in turn.futures]) for turn in episode.turns]
    assert 0.1 < values[0] < 0.9 and values[1:] == [worth, worth]
    group = [episode, replace(episode, episode_id="other")]
    batch = build_batch([make_group(group)], CreditConfig(kind="vine", filter_on="shaped"), 4)
    advantages = [batch.samples[0].advantages_T[len(turn.prompt)] for turn in episode.turns]
    np.testing.assert_allclose(advantages, [worth - values[0], 0, 0], atol=1e-6)


def make_group(episodes):
    return Group("g", TASK.instance_id, 0, tuple(episodes))


async def test_continuations_differ_by_their_seeds_and_are_the_same_again():
    found = [await run_episode(SoftmaxPolicy(CHAT, TEXTS), TASK, make_rig(continuations=20), SLOT) for _ in range(2)]
    assert found[0].turns[0].futures == found[1].turns[0].futures
    assert len(set(found[0].turns[0].futures)) > 1


async def test_a_fork_that_comes_to_no_grade_is_infra_for_the_whole_episode_and_never_a_zero():
    async def lost(task, patch):
        return Verdict(task.instance_id, Outcome.INFRA, "no daemon")

    episode = await run_episode(SoftmaxPolicy(CHAT, TEXTS), TASK, make_rig(grading=lost), SLOT)
    assert (episode.stop, episode.reward) == (Stop.INFRA, None) and "no daemon" in episode.error


@pytest.mark.parametrize(("error", "stop"), [(SandboxError("gone"), Stop.INFRA), (ResourceExhausted("full"), Stop.RESOURCE)])
async def test_a_machine_that_cannot_be_forked_is_told_as_what_it_is(error, stop):
    class Stubborn(FakeSandbox):
        async def copy_from(self, source):
            raise error

    episode = await run_episode(SoftmaxPolicy(CHAT, TEXTS), TASK, make_rig(MemoryMachines(Stubborn)), SLOT)
    assert episode.stop is stop


async def test_an_engine_that_fails_in_a_fork_for_a_while_is_asked_again():
    policy = FailingPolicy(3, SoftmaxPolicy(CHAT, TEXTS))
    episode = await run_episode(policy, TASK, make_rig(infra_retries=3), SLOT)
    assert episode.stop is not Stop.INFRA and all(len(turn.futures) == 3 for turn in episode.turns)


async def test_the_clock_of_an_episode_stands_still_while_others_go_on_from_it():
    async def slow(task, patch):
        await asyncio.sleep(0.4)
        return await grade_text(task, patch)

    rig = replace(make_rig(grading=slow), episode_seconds=1.0)
    episode = await run_episode(ScriptedPolicy(CHAT, TASK, (*["```bash\ntrue\n```"] * 3, SUBMIT)), TASK, rig, SLOT)
    assert episode.stop is Stop.SUBMITTED and episode.seconds > 1.6


async def test_a_run_with_vine_learns_to_repair_what_it_can_repair(tmp_path):
    """Three answers, one of which repairs the file: exact gradients of the toy loop, 8 steps from 1/3 each."""
    rig = make_rig(continuations=2)
    world = replace(make_world(), rig=rig)
    config = make_config(8).model_copy(update={"rollout": rig.rollout, "credit": CreditConfig(kind="vine", filter_on="shaped")})
    with Journal(tmp_path / "run") as journal:
        await train(config, journal, world)
        futures = [turn.futures for episode in journal.episodes() for turn in episode.turns]
    assert futures and all(len(found) == 2 for found in futures), "the journal has them"
    chances = np.exp(world.policy.log_p())
    assert chances[TEXTS.index(RIGHT)] > 0.5 > 0.2 > chances[TEXTS.index(WRONG)]


async def test_in_real_machines_forks_carry_the_files_and_a_crowd_does_not_wait_for_itself(backend, tmp_path):
    limits = Limits(memory_mb=256, pids=64, disk_mb=64, command_seconds=10.0, episode_seconds=300.0)
    task = toy_suite(tmp_path).tasks[0]
    edit = render(ToolCall("edit", {"path": "calc.py", "old": "a - b", "new": "a + b"}))
    look = render(ToolCall("bash", {"command": "grep -c 'a + b' calc.py; ls /tmp"}))
    note = render(ToolCall("bash", {"command": "echo x > /tmp/note"}))
    config = RolloutConfig(max_turns=5, group_size=2, tasks_per_step=1, continuations=2)
    pools = [Pool(backend, limits, 2), Pool(backend, limits, 1), Pool(backend, limits, 2)]
    async with pools[0] as machines, pools[1] as forks, pools[2] as graders, asyncio.timeout(200):
        judge = partial(grade, graders, limits=limits)
        rig = Rig(CHAT, machines, diff, judge, config, 1 << 20, 10.0, 120.0, forks=forks, retry_seconds=0.1)
        script = ScriptedPolicy(CHAT, task, (note, edit, look, render(ToolCall("submit", {}))))
        steps = [groups async for groups in collect(script, [task], rig, Schedule(steps=1))]
    for episode in steps[0][0].episodes:
        assert (episode.stop, episode.reward) == (Stop.SUBMITTED, 1.0)
        assert [turn.futures for turn in episode.turns] == [(Future(1.0, 4),) * 2] * 4
