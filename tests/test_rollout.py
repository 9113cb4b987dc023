import asyncio
import json
import zlib
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pipeline.action import render
from pipeline.codec import decode_episode, encode_episode
from pipeline.collect import Schedule, choose_tasks, collect
from pipeline.config import RolloutConfig
from pipeline.expert import ScriptedPolicy
from pipeline.fake import FailingPolicy, MemoryMachines, SlowPolicy
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig, Slot, derive_seed, run_episode
from pipeline.types import Stop, ToolCall
from sandbox import FakeBackend, FakeSandbox, Image, Limits, Pool, ResourceExhausted, SandboxError
from tasks import Outcome, Task, Verdict

CHAT = Chat(ByteTemplate())
EDIT = render(ToolCall("edit", {"path": "m.py", "old": "x = 1", "new": "x = 2"}))
BASH = render(ToolCall("bash", {"command": "true"}))
SUBMIT = render(ToolCall("submit", {}))
SLOT = Slot("e", "g")


def make_task(instance_id="task"):
    return Task(instance_id, "r", "1", "0" * 40, f"Fix {instance_id}.", Image("none"), "", "", "", "parse_log_pytest", ("test_x",), ())


TASK = make_task()


class Graders:
    """Grades a patch as resolved iff it says x = 2, after `failures` failures of its own."""

    def __init__(self, failures=0):
        self.failures = failures
        self.patches = []

    async def __call__(self, task, patch):
        self.patches.append(patch)
        if self.failures:
            self.failures -= 1
            return Verdict(task.instance_id, Outcome.INFRA, "no daemon")
        if not patch:
            return Verdict(task.instance_id, Outcome.NO_PATCH)
        return Verdict(task.instance_id, Outcome.RESOLVED if "x = 2" in patch else Outcome.UNRESOLVED)


async def read_diff(sandbox, image):
    """Stands for sandbox.diff: the file where it differs from the original."""
    text = sandbox.files["/testbed/m.py"].decode()
    return "" if text == "x = 1\n" else text


def make_machines(*replies):
    """Machines that answer every command with a reply; with several, each machine has its own, the last for the rest."""
    left = list(replies)

    def make():
        reply = left.pop(0) if len(left) > 1 else (left or [b""])[0]
        return FakeSandbox({"": reply}, {"/testbed/m.py": b"x = 1\n"})

    return MemoryMachines(make)


def make_rig(machines=None, grade=None, diff=read_diff, **rollout):
    config = RolloutConfig(**{"max_turns": 4, "group_size": 2, "tasks_per_step": 2, **rollout})
    return Rig(CHAT, machines or make_machines(), diff, grade or Graders(), config, 20_000, 10.0, 60.0, retry_seconds=0.0)


def say(*texts, task=TASK):
    return ScriptedPolicy(CHAT, task, texts)


async def test_an_episode_that_submits_is_graded_and_its_machine_closed():
    rig = make_rig()
    episode = await run_episode(say(EDIT, BASH, SUBMIT), TASK, rig, SLOT)
    assert (episode.stop, episode.reward, episode.patch, episode.retries) == (Stop.SUBMITTED, 1.0, "x = 2\n", 0)
    assert [turn.call.name for turn in episode.turns] == ["edit", "bash", "submit"]
    assert [machine.closed for machine in rig.machines.made] == [True]


async def test_each_prompt_is_the_last_one_with_the_sampled_ids_and_the_observation():
    episode = await run_episode(say(EDIT, "no action", SUBMIT), TASK, make_rig(), SLOT)
    assert episode.turns[0].prompt == tuple(CHAT.start_prompt(TASK))
    for turn, following in zip(episode.turns, episode.turns[1:], strict=False):
        assert following.prompt[: len(turn.prompt) + len(turn.completion.ids)] == turn.prompt + turn.completion.ids
        assert list(following.prompt) == CHAT.extend(turn.prompt, turn.completion, turn.observation)


async def test_nothing_changed_is_no_patch_and_counts_as_zero():
    episode = await run_episode(say(SUBMIT), TASK, make_rig(), SLOT)
    assert (episode.verdict.outcome, episode.reward) == (Outcome.NO_PATCH, 0.0)


async def test_the_turn_limit_ends_the_episode_and_the_diff_is_graded():
    episode = await run_episode(say(EDIT, BASH, BASH, BASH, BASH), TASK, make_rig(), SLOT)
    assert (episode.stop, len(episode.turns), episode.reward) == (Stop.MAX_TURNS, 4, 1.0)


async def test_a_full_context_ends_the_episode_and_the_diff_is_graded():
    rig = make_rig()
    room = len(CHAT.start_prompt(TASK)) + 110
    episode = await run_episode(say(EDIT, BASH, BASH), TASK, replace(rig, context=room), SLOT)
    assert (episode.stop, episode.reward) == (Stop.CONTEXT_FULL, 1.0)
    assert all(len(turn.prompt) + len(turn.completion.ids) <= room for turn in episode.turns)


async def test_an_issue_longer_than_the_context_is_a_full_context_without_turns():
    episode = await run_episode(say(EDIT), TASK, replace(make_rig(), context=10), SLOT)
    assert (episode.stop, episode.turns, episode.reward) == (Stop.CONTEXT_FULL, (), 0.0)


async def test_malformed_turns_in_a_row_end_the_episode_and_the_diff_is_graded():
    rig = make_rig(format_errors=2, max_turns=9)
    episode = await run_episode(say("hm", EDIT, "hm", "hm"), TASK, rig, SLOT)
    assert (episode.stop, len(episode.turns), episode.reward) == (Stop.FORMAT, 4, 1.0)
    assert episode.turns[0].call is None and "No fenced block" in episode.turns[0].observation


async def test_an_answer_cut_at_the_token_limit_is_told_so():
    episode = await run_episode(say("long " * 100, SUBMIT), TASK, make_rig(max_new_tokens=40), SLOT)
    assert "cut at the token limit" in episode.turns[0].observation
    assert episode.turns[0].completion.stopped is False and len(episode.turns[0].completion.ids) == 40


async def test_the_time_limit_ends_the_episode_and_the_diff_is_graded():
    policy = SlowPolicy(0.2, say(EDIT, *[BASH] * 50))
    episode = await run_episode(policy, TASK, replace(make_rig(max_turns=50), episode_seconds=0.5), SLOT)
    assert (episode.stop, episode.reward) == (Stop.TIME, 1.0) and 1 <= len(episode.turns) < 4


async def test_an_agent_that_uses_up_its_machine_is_graded():
    machines = make_machines(ResourceExhausted("disk full"))
    episode = await run_episode(say(EDIT, BASH), TASK, make_rig(machines), SLOT)
    assert (episode.stop, episode.reward, episode.error, episode.retries) == (Stop.RESOURCE, 1.0, "disk full", 0)


@pytest.mark.parametrize("failure", [SandboxError("gone"), ResourceExhausted("dead")])
async def test_a_used_up_machine_whose_diff_cannot_be_read_is_no_patch(failure):
    async def diff(sandbox, image):
        raise failure

    machines = make_machines(ResourceExhausted("killed its supervisor"))
    episode = await run_episode(say(EDIT, BASH), TASK, make_rig(machines, diff=diff), SLOT)
    assert (episode.stop, episode.verdict.outcome, episode.reward) == (Stop.RESOURCE, Outcome.NO_PATCH, 0.0)


async def test_a_failing_machine_is_replaced_and_the_retry_counted():
    rig = make_rig(make_machines(SandboxError("daemon"), SandboxError("daemon"), b""))
    episode = await run_episode(say(BASH, EDIT, SUBMIT), TASK, rig, SLOT)
    assert (episode.stop, episode.reward, episode.retries, len(episode.turns)) == (Stop.SUBMITTED, 1.0, 2, 3)
    assert [machine.closed for machine in rig.machines.made] == [True] * 3


@pytest.mark.parametrize("where", ["machine", "engine", "diff", "grader"])
async def test_infrastructure_that_keeps_failing_gives_no_reward(where):
    async def diff(sandbox, image):
        raise SandboxError("daemon")

    rig = make_rig(
        make_machines(SandboxError("daemon") if where == "machine" else b""),
        Graders(failures=99 if where == "grader" else 0),
        diff if where == "diff" else read_diff,
    )
    policy = FailingPolicy(99 if where == "engine" else 0, say(BASH, SUBMIT))
    episode = await run_episode(policy, TASK, rig, SLOT)
    assert (episode.stop, episode.reward, episode.verdict.outcome) == (Stop.INFRA, None, Outcome.INFRA)
    assert episode.retries == rig.rollout.infra_retries and episode.error


async def test_a_grader_that_fails_once_is_asked_again_without_a_new_episode():
    rig = make_rig(grade=Graders(failures=1))
    episode = await run_episode(say(EDIT, SUBMIT), TASK, rig, SLOT)
    assert (episode.stop, episode.reward, episode.retries, len(rig.machines.made)) == (Stop.SUBMITTED, 1.0, 1, 1)


async def test_our_own_mistakes_are_not_taken_for_infrastructure():
    async def diff(sandbox, image):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await run_episode(say(SUBMIT), TASK, make_rig(diff=diff), SLOT)


async def test_a_cancelled_episode_closes_its_machine():
    started = asyncio.Event()

    def make():
        started.set()
        return FakeSandbox()

    rig = make_rig(MemoryMachines(make))
    running = asyncio.create_task(run_episode(SlowPolicy(30, say(SUBMIT)), TASK, rig, SLOT))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert rig.machines.made[0].closed


def test_seeds_differ_between_siblings_and_turns_and_repeat_in_a_retry():
    seeds = {derive_seed(Slot(f"e{number}", "g", seed), turn) for number in range(5) for turn in range(5) for seed in (0, 1)}
    assert len(seeds) == 50 and all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(SLOT, 3) == derive_seed(SLOT, 3)


# --- collect -------------------------------------------------------------------------------------------------


def act(task):
    return say(EDIT, SUBMIT, task=task)


async def test_steps_give_groups_of_episodes_of_the_chosen_tasks():
    tasks = [make_task(f"t{number}") for number in range(3)]
    finished = []
    schedule = Schedule(steps=3, first_step=1, seed=7, on_episode=finished.append)
    steps = [groups async for groups in collect(act, tasks, make_rig(), schedule)]
    assert [[group.step for group in groups] for groups in steps] == [[1, 1], [2, 2]]
    assert [[group.instance_id for group in groups] for groups in steps] == [
        [task.instance_id for task in choose_tasks(tasks, step, 2, 7)] for step in (1, 2)
    ]
    episodes = [episode for groups in steps for group in groups for episode in group.episodes]
    assert len({episode.episode_id for episode in episodes}) == len(episodes) == len(finished) == 8
    assert all(episode.reward == 1.0 for episode in episodes)


async def test_finished_episodes_are_taken_over_and_not_repeated():
    tasks = [make_task("a"), make_task("b")]
    first = await anext(collect(act, tasks, make_rig(), Schedule(steps=1)))
    done = {episode.episode_id: episode for group in first for episode in group.episodes[:1]}
    again = []
    groups = await anext(collect(act, tasks, make_rig(), Schedule(steps=1, done=done, on_episode=again.append)))
    assert [group.episodes[0] for group in groups] == [group.episodes[0] for group in first]
    assert {episode.episode_id for episode in again} == {group.episodes[1].episode_id for group in first}


def test_every_task_comes_once_per_round_in_an_order_that_the_seed_decides():
    tasks = [make_task(f"t{number}") for number in range(5)]
    rounds = [task.instance_id for step in range(5) for task in choose_tasks(tasks, step, 2, 3)]
    assert sorted(rounds[:5]) == sorted(rounds[5:]) == sorted(task.instance_id for task in tasks)
    assert rounds == [task.instance_id for step in range(5) for task in choose_tasks(tasks, step, 2, 3)]
    assert rounds != [task.instance_id for step in range(5) for task in choose_tasks(tasks, step, 2, 4)]
    with pytest.raises(ValueError, match="no tasks"):
        choose_tasks([], 0, 1, 0)


async def test_a_bug_in_one_episode_stops_the_step_and_closes_every_machine():
    calls = []

    async def diff(sandbox, image):
        calls.append(sandbox)
        if len(calls) == 2:
            raise KeyError("a bug")
        await asyncio.sleep(30)
        return ""

    rig = make_rig(diff=diff)
    with pytest.raises(KeyError, match="a bug"):
        [groups async for groups in collect(act, [make_task("a"), make_task("b")], rig, Schedule(steps=1))]
    assert rig.machines.made and all(machine.closed for machine in rig.machines.made)


async def test_each_turn_keeps_what_was_seen_before_its_action_and_the_journal_keeps_it_too():
    machines = make_machines(b"abc 1 passed, 3 failed in 1s")
    rig = make_rig(machines, anchors=True, visible_tests="python -m pytest -q")
    episode = await run_episode(say(EDIT, "no action", BASH, SUBMIT), TASK, rig, SLOT)
    assert episode.stop is Stop.SUBMITTED
    assert [(turn.anchor, turn.passed) for turn in episode.turns] == [("abc", 0.25)] * 4
    assert decode_episode(encode_episode(episode)) == episode


async def test_a_journal_without_anchors_and_tests_still_loads_and_is_written_as_before():
    episode = await run_episode(say(EDIT, SUBMIT), TASK, make_rig(), SLOT)
    rows = json.loads(zlib.decompress(encode_episode(episode)))["turns"]
    assert all("seen" not in row for row in rows)
    assert [(turn.anchor, turn.passed) for turn in decode_episode(encode_episode(episode)).turns] == [("", None)] * 2


# --- what overlaps -------------------------------------------------------------------------------------------


class SayingPolicy(ScriptedPolicy):
    """Tells when it is asked; a first answer can be held back for ever."""

    def __init__(self, *texts, hangs=False):
        super().__init__(CHAT, TASK, texts)
        self.asked, self.cancelled, self._hangs = asyncio.Event(), False, hangs

    async def sample(self, prompt, max_tokens, seed):
        self.asked.set()
        try:
            await asyncio.sleep(600 if self._hangs else 0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return await super().sample(prompt, max_tokens, seed)


class SlowMachines(MemoryMachines):
    """A machine is ready when the first answer has been asked for."""

    def __init__(self, policy, failure=None):
        super().__init__(lambda: FakeSandbox({}, {"/testbed/m.py": b"x = 1\n"}))
        self._policy, self._failure = policy, failure

    @asynccontextmanager
    async def lease(self, image, *, begun=None):
        begun()
        async with asyncio.timeout(10):
            await self._policy.asked.wait()
        if self._failure:
            raise self._failure
        async with super().lease(image) as machine:
            yield machine


async def test_the_first_answer_is_sampled_while_the_machine_is_made_ready():
    policy = SayingPolicy(EDIT, SUBMIT)
    episode = await run_episode(policy, TASK, make_rig(SlowMachines(policy)), SLOT)
    assert (episode.stop, episode.reward, len(episode.turns)) == (Stop.SUBMITTED, 1.0, 2)


async def test_where_the_machine_fails_the_answer_that_was_begun_is_cancelled():
    policy = SayingPolicy(EDIT, hangs=True)
    episode = await run_episode(policy, TASK, make_rig(SlowMachines(policy, SandboxError("no room")), infra_retries=0), SLOT)
    assert (episode.stop, policy.cancelled) == (Stop.INFRA, True)


async def test_an_episode_that_waits_for_room_samples_nothing():
    backend, policies = FakeBackend(), [SayingPolicy(SUBMIT, hangs=True), SayingPolicy(SUBMIT)]
    async with Pool(backend, Limits(), concurrency=1) as pool:
        running = [asyncio.create_task(run_episode(policy, TASK, make_rig(pool), SLOT)) for policy in policies]
        await policies[0].asked.wait()
        await asyncio.sleep(0.05)
        assert not policies[1].asked.is_set()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_machine_is_given_back_before_its_patch_is_graded():
    rig = make_rig()

    async def grade(task, patch):
        assert [machine.closed for machine in rig.machines.made] == [True]
        return Verdict(task.instance_id, Outcome.RESOLVED)

    assert (await run_episode(say(EDIT, SUBMIT), TASK, replace(rig, grade=grade), SLOT)).reward == 1.0
