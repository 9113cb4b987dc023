"""An episode that was interrupted goes on after its last turn, on a machine that is shown to be the same; else it begins again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.action import render
from pipeline.config import RolloutConfig
from pipeline.expert import ScriptedPolicy
from pipeline.fake import MemoryMachines
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.redo import USED_UP
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.types import Completion, Episode, Stop, ToolCall
from sandbox import FakeSandbox, Image, ResourceExhausted, Sandbox, SandboxError
from tasks import Outcome, Task, Verdict

CHAT = Chat(ByteTemplate())
TASK = Task("task", "r", "1", "0" * 40, "Fix it.", Image("none"), "", "", "", "parse_log_pytest", ("test_x",), ())
EDIT = render(ToolCall("edit", {"path": "m.py", "old": "x = 1", "new": "x = 2"}))
BASH = render(ToolCall("bash", {"command": "cat m.py"}))
SLOT = Slot("e", "g")


class Killed(BaseException):
    """Stands for kill -9: nothing after it is done."""


class DyingPolicy(ScriptedPolicy):
    """Is asked `left` times; then the process dies."""

    def __init__(self, left: int, *texts: str) -> None:
        super().__init__(CHAT, TASK, texts)
        self.left, self.asked = left, 0

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        if not self.left:
            raise Killed
        self.left, self.asked = self.left - 1, self.asked + 1
        return replace(await super().sample(prompt, max_tokens, seed), version=self.version)


async def read_diff(sandbox: Sandbox, image: Image) -> str:
    text = (await sandbox.read("/testbed/m.py")).decode()
    return "" if text == "x = 1\n" else text


async def grade(task: Task, patch: str) -> Verdict:
    return Verdict(task.instance_id, Outcome.RESOLVED if "x = 2" in patch else Outcome.UNRESOLVED)


def make_rig(journal: Journal, *replies: bytes | Exception, **rollout: object) -> Rig:
    """Each machine answers its commands (the hash of the tree is one) with a reply of its own, the last one's for the rest."""
    left = list(replies)
    machines = MemoryMachines(lambda: FakeSandbox({"": left.pop(0) if len(left) > 1 else left[0]}, {"/testbed/m.py": b"x = 1\n"}))
    config = RolloutConfig.model_validate({"max_turns": 5, "infra_retries": 1, **rollout})
    return Rig(CHAT, machines, read_diff, grade, config, 20_000, 10.0, 60.0, retry_seconds=0.0, diary=journal)


async def play_and_die(journal: Journal, rig: Rig, turns: int = 2) -> None:
    with pytest.raises(Killed):
        await run_episode(DyingPolicy(turns, EDIT, BASH, BASH), TASK, rig, SLOT)
    assert len(journal.turns("e")) == turns


async def go_on(rig: Rig, version: int = 0) -> tuple[Episode, DyingPolicy]:
    policy = DyingPolicy(99, EDIT, BASH, BASH)
    policy.version = version
    return await run_episode(policy, TASK, rig, SLOT), policy


async def test_an_interrupted_episode_goes_on_after_its_last_turn(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        rig = make_rig(journal, b"out")
        whole = await run_episode(DyingPolicy(9, EDIT, BASH, BASH), TASK, rig, Slot("w", "g"))
        await play_and_die(journal, rig)
        episode, policy = await go_on(rig)
        assert policy.asked == 2 and episode.stop is Stop.SUBMITTED and episode.reward == 1.0
        assert [(turn.completion, turn.observation, turn.tree) for turn in episode.turns] == [
            (turn.completion, turn.observation, turn.tree) for turn in whole.turns
        ]
        assert [turn.tree for turn in episode.turns] == ["out", "out", "out", ""]
        assert ("e", "resumed", "after turn 2") in journal.ledger().events


async def test_a_machine_that_answers_differently_makes_the_episode_begin_again_and_that_is_counted(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        await play_and_die(journal, make_rig(journal, b"out"))
        rig = make_rig(journal, b"other", b"out")
        episode, policy = await go_on(rig)
        assert policy.asked == 4 and episode.reward == 1.0 and len(rig.machines.made) == 2  # type: ignore[attr-defined]
        name, what, why = journal.ledger().events[-1]
        assert (name, what) == ("e", "cut") and why.startswith("begins again: turn 1: tree: recorded 'out', now 'other'")


async def test_an_observation_that_differs_is_found_where_no_tree_was_hashed(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        await play_and_die(journal, make_rig(journal, b"out", trees=False))
        episode, policy = await go_on(make_rig(journal, b"other", b"out", trees=False))
        assert policy.asked == 4 and [turn.tree for turn in episode.turns] == [""] * 4
        assert journal.ledger().events[-1][2].startswith("begins again: turn 2: observation")


async def test_an_episode_that_was_killed_while_it_was_graded_is_not_sampled_again(tmp_path: Path) -> None:
    async def die(task: Task, patch: str) -> Verdict:
        raise Killed

    with Journal(tmp_path) as journal:
        rig = make_rig(journal, b"out")
        with pytest.raises(Killed):
            await run_episode(DyingPolicy(9, EDIT), TASK, replace(rig, grade=die), SLOT)
        episode, policy = await go_on(rig)
        assert policy.asked == 0 and (episode.stop, episode.reward, len(episode.turns)) == (Stop.SUBMITTED, 1.0, 2)


@pytest.mark.parametrize(("version", "asked"), [(3, 2), (2, 4)])
async def test_turns_of_weights_that_do_not_exist_any_more_are_sampled_again(tmp_path: Path, version: int, asked: int) -> None:
    """Sampled by version 3; the run goes on with 3, or with 2, because the step that made 3 was never committed."""
    with Journal(tmp_path) as journal:
        rig = make_rig(journal, b"out")
        dying = DyingPolicy(2, EDIT, BASH, BASH)
        dying.version = 3
        with pytest.raises(Killed):
            await run_episode(dying, TASK, rig, SLOT)
        episode, policy = await go_on(rig, version)
        assert policy.asked == asked and {turn.completion.version for turn in episode.turns} == {version}
        cut = [why for _, what, why in journal.ledger().events if what == "cut"]
        assert cut == ([] if version == 3 else ["version 3 does not exist: the policy is at 2"])


async def test_a_machine_that_fails_in_mid_episode_is_replaced_and_no_turn_is_sampled_twice(tmp_path: Path) -> None:
    class FailingOnce(FakeSandbox):
        async def run(self, command, **options):  # type: ignore[no-untyped-def]
            if "cat m.py" in command and not failed:
                failed.append(command)
                raise SandboxError("the machine is gone")
            return await super().run(command, **options)

    failed: list[str] = []
    with Journal(tmp_path) as journal:
        machines = MemoryMachines(lambda: FailingOnce({"": b"out"}, {"/testbed/m.py": b"x = 1\n"}))
        episode, policy = await go_on(replace(make_rig(journal, b""), machines=machines))
        assert (episode.reward, episode.retries, len(machines.made)) == (1.0, 1, 2)
        assert policy.asked == 5  # the turn whose action failed is sampled again, with the same seed; the one before it is not


async def test_the_action_that_ends_the_machine_is_a_turn_and_ends_it_again(tmp_path: Path) -> None:
    async def die(task: Task, patch: str) -> Verdict:
        raise Killed

    with Journal(tmp_path) as journal:
        rig = make_rig(journal, ResourceExhausted("disk full"), trees=False)
        with pytest.raises(Killed):
            await run_episode(DyingPolicy(9, EDIT, BASH), TASK, replace(rig, grade=die), SLOT)
        episode, policy = await go_on(rig)
        assert policy.asked == 0 and (episode.stop, episode.reward, episode.error) == (Stop.RESOURCE, 1.0, "disk full")
        assert [turn.observation for turn in episode.turns] == ["edited m.py, line 1", f"{USED_UP}disk full]"]
