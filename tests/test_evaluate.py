"""Evaluation on fakes: the score, what a second run of the same command does, what the infrastructure's failures count as."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.action import render
from pipeline.breaker import InfraStopped
from pipeline.config import RolloutConfig
from pipeline.evaluate import Actor, evaluate
from pipeline.expert import ScriptedPolicy
from pipeline.fake import FailingPolicy, MemoryMachines
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.results import load_results
from pipeline.rollout import Rig
from pipeline.types import Policy, ToolCall
from sandbox import FakeSandbox, Image, Sandbox
from tasks import Outcome, Task, Verdict

CHAT = Chat(ByteTemplate())
EDIT = render(ToolCall("edit", {"path": "m.py", "old": "x = 1", "new": "x = 2"}))


def make_task(name: str) -> Task:
    return Task(name, "r", "1", "0" * 40, f"Fix {name}.", Image("none"), "", "", "", "parse_log_pytest", ("test_x",), ())


TASKS = [make_task("a"), make_task("b"), make_task("c")]


async def read_diff(sandbox: Sandbox, image: Image) -> str:
    text = (await sandbox.read("/testbed/m.py")).decode()
    return "" if text == "x = 1\n" else text


async def grade(task: Task, patch: str) -> Verdict:
    return Verdict(task.instance_id, Outcome.RESOLVED if patch else Outcome.NO_PATCH)


def make_rig(machines: MemoryMachines) -> Rig:
    config = RolloutConfig(max_turns=4, infra_retries=1)
    return Rig(CHAT, machines, read_diff, grade, config, context=8192, command_seconds=1, episode_seconds=30, retry_seconds=0)


def make_machines() -> MemoryMachines:
    return MemoryMachines(lambda: FakeSandbox(files={"/testbed/m.py": b"x = 1\n"}))


def solver(*solved: str) -> Actor:
    """Solves the named tasks and submits nothing for the others."""
    return Actor("script", lambda task: ScriptedPolicy(CHAT, task, [EDIT] if task.instance_id in solved else []))


async def test_the_score_is_resolved_over_instances(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        results = await evaluate(solver("a"), TASKS, make_rig(make_machines()), journal)
    assert (results.instances, results.resolved, results.submitted) == (3, 1, 1.0)
    assert results.outcomes == {"resolved": 1, "no_patch": 2}
    assert load_results(tmp_path) == results


async def test_the_same_command_again_repeats_nothing(tmp_path: Path) -> None:
    machines = make_machines()
    with Journal(tmp_path) as journal:
        await evaluate(solver("a"), TASKS[:2], make_rig(machines), journal)
        assert len(machines.made) == 2
        results = await evaluate(solver("a"), TASKS, make_rig(machines), journal)
    assert len(machines.made) == 3
    assert (results.instances, results.resolved) == (3, 1)


async def test_failures_in_a_row_stop_the_run_with_advice_and_the_same_command_goes_on(tmp_path: Path) -> None:
    broken = Actor("script", lambda task: FailingPolicy(99, ScriptedPolicy(CHAT, task, [])))
    rig = replace(make_rig(make_machines()), rollout=RolloutConfig(infra_retries=0, infra_stop=2))
    with Journal(tmp_path) as journal:
        with pytest.raises(InfraStopped, match=r"2 episodes in a row .* `greengrad doctor`"):
            await evaluate(broken, TASKS, rig, journal)
        assert [row.outcome for row in journal.rows()][:2] == ["infra", "infra"]
        results = await evaluate(solver("a", "b"), TASKS, rig, journal)
    assert (results.instances, results.resolved, results.infra) == (3, 2, 0)


async def test_what_the_infrastructure_failed_is_attempted_again_and_counts_as_unresolved_until_then(tmp_path: Path) -> None:
    def flaky(task: Task) -> Policy:
        return FailingPolicy(99 if task.instance_id == "b" else 0, solver("b").policy_for(task))

    with Journal(tmp_path) as journal:
        first = await evaluate(Actor("flaky", flaky), TASKS, make_rig(make_machines()), journal)
        assert (first.instances, first.resolved, first.infra) == (3, 0, 1)
        second = await evaluate(solver("b"), TASKS, make_rig(make_machines()), journal)
        assert (second.instances, second.resolved, second.infra) == (3, 1, 0)
        assert [row.episode_id for row in journal.rows() if row.instance_id == "b"] == ["b", "b~1"]


async def test_what_finished_before_a_crash_is_kept(tmp_path: Path) -> None:
    def crashing(task: Task) -> Policy:
        if task.instance_id == "c":
            raise RuntimeError("we are wrong")
        return solver("a").policy_for(task)

    machines = make_machines()
    with Journal(tmp_path) as journal:
        await evaluate(solver("a"), TASKS[:1], make_rig(machines), journal)
    with Journal(tmp_path) as journal, pytest.raises(RuntimeError, match="we are wrong"):
        await evaluate(Actor("crashing", crashing), TASKS, make_rig(machines), journal)
    with Journal(tmp_path) as journal:
        assert [row.instance_id for row in journal.rows()][:1] == ["a"]
        assert load_results(tmp_path) is not None
