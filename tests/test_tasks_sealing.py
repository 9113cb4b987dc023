"""Tasks that must not be attempted: counted as infrastructure with the reason, never tried, and the rest of the suite goes on."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.actor import Prepared, prepare_machines
from pipeline.breaker import InfraStopped
from pipeline.config import RolloutConfig, SandboxConfig
from pipeline.evaluate import Actor, evaluate
from pipeline.expert import ScriptedPolicy
from pipeline.fake import MemoryMachines
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.suite import validate
from pipeline.types import Stop
from sandbox import DyingSandbox, FakeBackend, FakeSandbox, Image, make_tree
from sandbox.store import home
from tasks import Outcome, Task, Verdict, grade, grade_untouched, load_suite, seal_tasks, toy_suite, write_task
from tasks.patches import diff_text

CHAT = Chat(ByteTemplate())


@pytest.fixture
def suite(tmp_path):
    """Three toy tasks, and one whose fix lies in the environment: the bug is in the packaging that pytest needs as well."""
    made = toy_suite(tmp_path / "suite")
    toy = made.tasks[0]
    site = home() / "envs" / toy.image.name.rpartition(":")[2] / "site"
    right = (site / "packaging" / "utils.py").read_text()
    wrong = right.replace("return (name, version)", "return (version, name)", 1)
    assert wrong != right
    (tmp_path / "source" / "src" / "packaging").mkdir(parents=True)
    (tmp_path / "source" / "src" / "packaging" / "utils.py").write_text(wrong)
    commit = make_tree(tmp_path / "source", tmp_path / "tree.tar")
    patch = diff_text("src/packaging/utils.py", wrong, right)
    leaky = replace(toy, instance_id="leaky", base_commit=commit, gold_patch=patch, image=Image(toy.image.name, tmp_path / "tree.tar"))
    write_task(made.path, leaky, "FROM scratch\n")
    return load_suite(made.path)


async def test_a_task_whose_fix_is_installed_is_unusable_and_the_others_are_as_they_were(backend, suite):
    found = {task.instance_id: task for task in await seal_tasks(backend, suite.tasks)}
    leaky = found.pop("leaky")
    assert list(found.values()) == [task for task in suite.tasks if task.instance_id != "leaky"]
    assert leaky.unusable.startswith("not sealed: the machine holds the answer") and "/packaging/utils.py" in leaky.unusable
    machines = FakeBackend()
    for verdict in (
        await grade(machines, leaky, leaky.gold_patch),
        await grade(machines, leaky, ""),
        await grade_untouched(machines, leaky),
    ):
        assert (verdict.outcome, verdict.reward, verdict.reason) == (Outcome.INFRA, None, leaky.unusable)
    assert machines.started == []


async def test_a_machine_that_fails_or_says_nothing_proves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GREENGRAD_HOME", str(tmp_path / "home"))
    (tmp_path / "tree.tar").write_bytes(b"")
    task = replace(make_task("a"), image=Image("none", tmp_path / "tree.tar"))
    dying = FakeBackend(lambda: DyingSandbox(1))
    assert "the machine is gone" in (await seal_tasks(dying, [task]))[0].unusable
    assert len(dying.started) == 3 and all(machine.closed for machine in dying.started)
    assert "cannot be read" in (await seal_tasks(FakeBackend(), [task]))[0].unusable
    assert "holds no repository" in (await seal_tasks(FakeBackend(), [make_task("b")]))[0].unusable
    assert not (home() / "sealed").exists()


def make_task(name: str, unusable: str = "") -> Task:
    return Task(name, "r", "1", "0" * 40, "Fix.", Image("none"), "", "", "", "parse_log_pytest", ("test_x",), (), unusable=unusable)


def make_rig(machines: MemoryMachines, infra_stop: int = 20) -> Rig:
    async def graded(task: Task, patch: str) -> Verdict:
        return Verdict(task.instance_id, Outcome.NO_PATCH)

    async def no_diff(sandbox: object, image: Image) -> str:
        return ""

    config = RolloutConfig(max_turns=4, infra_retries=3, infra_stop=infra_stop)
    return Rig(CHAT, machines, no_diff, graded, config, context=8192, command_seconds=1, episode_seconds=30, retry_seconds=0)


async def test_an_unusable_task_gets_an_episode_without_machine_turn_or_reward():
    machines = MemoryMachines(FakeSandbox)
    task = make_task("leaky", "not sealed: it leaks")
    episode = await run_episode(ScriptedPolicy(CHAT, task, []), task, make_rig(machines), Slot("e", "g"))
    assert (episode.stop, episode.reward, episode.turns, episode.retries, machines.made) == (Stop.INFRA, None, (), 0, [])
    assert episode.verdict and "it leaks" in episode.verdict.reason


async def test_unusable_tasks_are_counted_and_do_not_stop_the_run(tmp_path):
    tasks = [make_task(f"leaky{number}", "it leaks") for number in range(4)] + [make_task("sound")]
    actor = Actor("script", lambda task: ScriptedPolicy(CHAT, task, []))
    with Journal(tmp_path) as journal:
        try:
            results = await evaluate(actor, tasks, make_rig(MemoryMachines(FakeSandbox), infra_stop=2), journal)
        except InfraStopped:
            pytest.fail("leaks are no sign of failing infrastructure")
    assert (results.instances, results.infra, results.outcomes) == (5, 4, {"infra": 4, "no_patch": 1})


def test_training_leaves_unusable_tasks_out_and_needs_one_that_is_left(caplog):
    sound, leaky = make_task("sound"), make_task("leaky", "it leaks")
    assert Prepared({"sound": sound, "leaky": leaky}, {}).usable() == [sound]
    assert "1 of 2 tasks are left out" in caplog.text
    with pytest.raises(ValueError, match="it leaks"):
        Prepared({"leaky": leaky}, {}).usable()


async def test_runs_start_from_sealed_tasks_and_name_their_images(backend, suite, tmp_path):
    (tmp_path / "manifest.json").write_text('{"images": {}}')
    ready = await prepare_machines(SandboxConfig(backend=backend.name), suite.path, suite.tasks, tmp_path)
    assert {name for name, task in ready.tasks.items() if task.unusable} == {"leaky"}
    images = json.loads((tmp_path / "manifest.json").read_text())["images"]
    assert set(images) == {suite.tasks[0].image.name} and all(images.values())


@pytest.mark.bubblewrap
def test_validation_tells_a_leak_apart_from_an_unsound_task(suite):
    found = {one.instance_id: one for one in asyncio.run(validate(suite.path, SandboxConfig(backend="bubblewrap"), 1, 2))}
    assert [name for name, one in found.items() if not one.sound] == ["leaky"]
    assert found["leaky"].failed and found["leaky"].gold == (Outcome.INFRA,)
    lines = [json.loads(line) for line in (Path(suite.path) / "lineage.jsonl").read_text().splitlines()]
    assert {line["instance_id"]: line["infra"] for line in lines}["leaky"] is True
