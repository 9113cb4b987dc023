"""What a run tells of itself: every name that is listed is written, and what the figures are."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import count_repeats
from pipeline.config import Config, HindsightConfig, UserConfig
from pipeline.config_reward import JudgeConfig
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.orders import LossStats, StepReport, TrainReport, summarise_steps
from pipeline.peak import find_peak, make_yardstick, measure_cpu
from pipeline.prompt import ByteTemplate, Chat
from pipeline.telemetry import Clock, Yardstick, measure_rollout, measure_speed
from pipeline.train import World, train
from pipeline.types import Batch, Completion, Episode, Group, Likeliest, Sample, Stop, Turn
from pipeline.user import ScriptedSpeaker, User
from tests.toy_loop import CHAT, RIGHT, TEXTS, DyingLearner, make_config, make_task, make_world

METRICS = Path(__file__).parent.parent / "docs" / "METRICS.md"


def listed() -> set[str]:
    return set(re.findall(r"^\| `([a-z0-9_/]+)` \| [^|]+ \| ", METRICS.read_text(), re.MULTILINE))


class ReportingLearner(SoftmaxLearner):
    """Tells what DeepSpeedLearner tells, by the same function; tests/test_learner.py compares the names with the real one's."""

    def step(self, batch: Batch) -> dict[str, float]:
        super().step(batch)
        directive = 0.1 if any(sample.teacher for sample in batch.samples) else None
        stats = LossStats(entropy=1.0, kl=0.1, directive=directive, planning=0.2, execution=0.8)
        reports = [TrainReport((StepReport(stats, 1.0, 1e-6),), 0.5)]
        return summarise_steps(reports, "policy") | {"optim/computed_tokens": 100.0}

    def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
        sizes = [(int(sample.mask_T.sum()), count) for sample in samples]
        return [Likeliest(np.zeros(size, np.int64), np.full(size, -1.0, np.float32)) for size in sizes]


def reporting_world() -> World:
    """Its tasks are interactive, so that what is asked is told as well."""
    settings = UserConfig(withhold=1.0)
    chat, ask = Chat(ByteTemplate(), user=settings), "```ask_user\nWhat should it be?\n```"
    texts = ("Let me look at it.\n" + RIGHT, *TEXTS[1:], ask)
    world = make_world(texts, ReportingLearner(chat, texts))
    tasks = [replace(task, problem_statement="add is wrong. It should be a + b.", files=("calc.py",)) for task in world.tasks]
    rig = replace(world.rig, chat=chat, user=User(ScriptedSpeaker(), settings))
    policy = SoftmaxPolicy(chat, texts)
    return replace(world, policy=policy, rig=rig, tasks=tasks, held_out=[make_task(9)], yardstick=Yardstick(6e6, 1e12))


async def test_a_run_writes_every_listed_metric_and_no_other(tmp_path: Path) -> None:
    config = make_config(4, eval_every=2)
    rollout = config.rollout.model_copy(update={"fill_groups": 2, "fill_rounds": 2})
    world = reporting_world()
    with Journal(tmp_path) as journal:
        await train(config.model_copy(update={"rollout": rollout}), journal, replace(world, rig=replace(world.rig, rollout=rollout)))
        written = set().union(*journal.steps().values())
    written |= await written_with_hindsight(tmp_path / "hindsight", None)
    written |= await written_with_hindsight(tmp_path / "top-k", 2)
    assert written - listed() == set(), "written, and not in docs/METRICS.md"
    assert listed() - written == set(), "in docs/METRICS.md, and not written"


async def written_with_hindsight(run: Path, top_k: int | None) -> set[str]:
    """What a run adds that learns from what came of each turn, with a judge that has given no vote."""
    keys = {"hindsight": HindsightConfig(judge=JudgeConfig(url="http://judge"), top_k=top_k)}
    with Journal(run) as journal:
        await train(make_config(1).model_copy(update=keys), journal, reporting_world())
        return set().union(*journal.steps().values())


async def test_a_step_on_fakes_has_no_staleness_and_its_phases_are_its_time(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        await train(make_config(2), journal, reporting_world())
        for metrics in journal.steps().values():
            assert metrics["rollout/staleness_max"] == metrics["rollout/staleness_mean"] == 0
            assert metrics["rollout/episodes"] == 16 and metrics["rollout/sampled_tokens"] > 0
            phases = [value for key, value in metrics.items() if key.startswith("time/") and key != "time/step_seconds"]
            assert metrics["time/step_seconds"] == pytest.approx(sum(phases))


async def test_what_an_earlier_process_sampled_does_not_count_as_speed(tmp_path: Path) -> None:
    config = make_config(4)
    with Journal(tmp_path) as journal:
        with pytest.raises(KeyboardInterrupt):
            await train(config, journal, make_world(learner=DyingLearner(CHAT, TEXTS)))
        cut = journal.next_step
        await train(config, journal, make_world())
        assert journal.steps()[cut]["rollout/episodes"] == 0
        assert "speed/sampled_tokens_per_second" not in journal.steps()[cut]
        assert journal.steps()[cut + 1]["rollout/episodes"] == 16


def episode(ids: list[tuple[int, ...]]) -> Episode:
    turns = [Turn((1,), Completion(one, (0.0,) * len(one), "", 0, True), None, "", 2.0, 3.0) for one in ids]
    return Episode("e", "g", "t", tuple(turns), Stop.SUBMITTED, "", None)


def test_tokens_and_seconds_by_hand() -> None:
    groups = [Group("g", "t", 0, (episode([(1, 2), (3,)]), episode([(5,)] * 2)))]
    found = measure_rollout(groups, done=())
    assert found == {"rollout/episodes": 2, "rollout/sampled_tokens": 5, "rollout/model_seconds": 8, "rollout/tool_seconds": 12}


def test_a_turn_repeats_when_it_says_the_same_tokens_as_the_one_before() -> None:
    assert [count_repeats(episode(ids).turns) for ids in ([], [(1,)], [(1,), (1,), (2,), (1,)], [(1, 2)] * 4)] == [0, 0, 1, 3]


def test_speed_by_hand() -> None:
    metrics = {
        **{"time/rollout_seconds": 4.0, "rollout/episodes": 1.0, "rollout/sampled_tokens": 100.0},
        **{"time/learn_seconds": 2.0, "batch/tokens": 80.0, "optim/computed_tokens": 300.0},
    }
    found = measure_speed(metrics, Yardstick(token_flops=6e6, peak_flops=1e10))
    assert found.pop("memory/resident_gb") > 0
    assert found == {
        "speed/sampled_tokens_per_second": 25,
        "speed/trained_tokens_per_second": 40,
        "speed/computed_tokens_per_second": 150,
        "speed/flops_utilisation": pytest.approx(0.09),
    }
    whole = measure_speed({**metrics, "time/step_seconds": 10.0}, None, overlapped=True)
    assert whole["speed/sampled_tokens_per_second"] == 10, "episodes run all the time"
    assert set(measure_speed({"time/rollout_seconds": 4.0}, None)) == {"memory/resident_gb"}


def test_a_clock_tells_each_phase_once_and_begins_anew() -> None:
    clock = Clock()
    for phase in ("rollout", "learn", "learn"):
        clock.lap(phase)
    assert set(clock.take()) == {"time/rollout_seconds", "time/learn_seconds", "time/step_seconds"}
    assert clock.take() == {"time/step_seconds": 0}


def test_a_peak_is_looked_up_measured_or_set() -> None:
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA L40S", "NVIDIA L4", "NVIDIA Something 7"]
    assert [find_peak(name) for name in names] == [989e12, 756e12, 362e12, 121e12, None]
    assert 0 < measure_cpu() < float("inf")
    keys = {"tasks": {"suite": "s"}, "model": {"path": "m"}, "placement": {"parameters_b": 7}, "telemetry": {"peak_tflops": 2}}
    assert make_yardstick(Config.model_validate(keys)) == Yardstick(pytest.approx(42e9, rel=0.05), 2e12)
