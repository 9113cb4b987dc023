"""Held-out tasks during training: evaluated, recorded, the best model kept; training itself is not changed by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.actor import open_chat
from pipeline.config import Config
from pipeline.convert import tiny_model
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.held_out import choose_held_out, find_best
from pipeline.journal import Journal
from pipeline.train import World, train
from pipeline.weights import Digests, digest
from pipeline.world import open_world, prepare_tasks
from sandbox import Backend
from tasks import toy_suite
from tests.toy_loop import CHAT, RIGHT, SUBMIT, TEXTS, DyingLearner, make_config, make_task, make_world

STEPS = 6


def held_out_world(learner: SoftmaxLearner | None = None) -> World:
    return replace(make_world(learner=learner), held_out=[make_task(number) for number in range(10, 22)])


def evaluating(eval_every: int = 2, steps: int = STEPS) -> Config:
    return make_config(steps, eval_every=eval_every)


async def test_every_eval_every_steps_and_after_the_last_the_held_out_tasks_are_evaluated(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        await train(evaluating(eval_every=4), journal, held_out_world())
        evaluated = {step: metrics for step, metrics in journal.steps().items() if "eval/resolved" in metrics}
    assert list(evaluated) == [3, 5]
    for step, metrics in evaluated.items():
        with Journal(tmp_path / f"eval-{step:05d}", readonly=True) as record:
            episodes = list(record.episodes())
        assert {one.instance_id for one in episodes} == {f"toy-{number}" for number in range(10, 22)}
        assert metrics["eval/resolved"] == sum(one.reward == 1 for one in episodes) / 12
        assert metrics["eval/instances"] == 12 and metrics["eval/infra"] == 0 and metrics["time/eval_seconds"] > 0
        assert {turn.completion.version for one in episodes for turn in one.turns} == {metrics["train/version"]}


async def test_the_best_model_is_the_export_of_the_step_that_was_best(tmp_path: Path) -> None:
    with Journal(tmp_path / "whole") as journal:
        await train(evaluating(eval_every=1), journal, held_out_world())
        steps = journal.steps()
    rates = [metrics["eval/resolved"] for metrics in steps.values()]
    best = rates.index(max(rates))
    assert steps[STEPS - 1]["eval/best_step"] == best and len(set(rates)) > 1
    short = held_out_world()
    with Journal(tmp_path / "short") as journal:
        await train(evaluating(eval_every=9, steps=best + 1), journal, short)
    assert isinstance(short.learner, SoftmaxLearner)
    np.testing.assert_array_equal(np.load(tmp_path / "whole" / "best" / "weights.npy"), short.learner.model.weights_A)


async def test_training_is_not_changed_by_it_and_a_killed_run_ends_with_the_same_rates_and_the_same_best(tmp_path: Path) -> None:
    ends = []
    for name, config in (("plain", make_config(STEPS)), ("whole", evaluating()), ("cut", evaluating())):
        with Journal(tmp_path / name) as journal:
            if name == "cut":
                with pytest.raises(KeyboardInterrupt):
                    await train(config, journal, held_out_world(DyingLearner(CHAT, TEXTS)))
                assert 0 < journal.next_step < STEPS
            world = held_out_world()
            await train(config, journal, world)
            assert isinstance(world.learner, SoftmaxLearner)
            rates = {step: metrics["eval/resolved"] for step, metrics in journal.steps().items() if "eval/resolved" in metrics}
            ends.append((world.learner.model.weights_A.tolist(), rates))
    plain, whole, cut = ends
    assert plain[0] == whole[0] == cut[0] and plain[1] == {} and whole[1] == cut[1] and list(cut[1]) == [1, 3, 5]
    best = [np.load(tmp_path / name / "best" / "weights.npy").tolist() for name in ("whole", "cut")]
    assert best[0] == best[1]


async def test_an_evaluation_of_nothing_is_an_error_and_no_rate_of_zero(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, pytest.raises(ValueError, match="there are no held-out tasks"):
        await train(evaluating(), journal, make_world())


def test_of_equal_rates_the_earliest_is_the_best() -> None:
    rates = {0: 0.1, 2: 0.4, 4: 0.4, 6: 0.2}
    assert find_best({step: {"eval/resolved": rate} for step, rate in rates.items()}) == (2, 0.4)
    assert find_best({0: {"reward/resolved": 1.0}}) is None


def test_the_split_that_is_trained_on_is_not_held_out() -> None:
    with pytest.raises(ValueError, match=r"train\.eval_split: train is what tasks\.split trains on"):
        Config.model_validate({"tasks": {"suite": "s"}, "train": {"eval_every": 1, "eval_split": "train"}})
    assert choose_held_out(Config.model_validate({"tasks": {"suite": "nowhere"}})) == []


def test_the_held_out_tasks_are_those_of_the_eval_split() -> None:
    rows = Path(__file__).parent / "data" / "verified_slice.parquet"
    config = Config.model_validate({"tasks": {"suite": rows}, "train": {"eval_every": 1, "eval_split": "test"}})
    assert {task.split for task in choose_held_out(config)} == {"test"}
    with pytest.raises(ValueError, match="no tasks of split 'elsewhere'"):
        choose_held_out(config.model_copy(update={"train": config.train.model_copy(update={"eval_split": "elsewhere"})}))


async def test_a_real_suite_is_prepared_with_its_held_out_tasks_apart(backend: Backend, tmp_path: Path) -> None:
    suite = toy_suite(tmp_path / "suite")
    keys = {"tasks": {"suite": suite.path}, "sandbox": {"backend": backend.name}, "train": {"eval_every": 1}}
    tasks, held_out = await prepare_tasks(Config.model_validate(keys), tmp_path)
    assert [task.split for task in tasks] == ["train", "train"] and [task.split for task in held_out] == ["test"]
    tasks, held_out = await prepare_tasks(Config.model_validate(keys | {"train": {}}), tmp_path)
    assert len(tasks) == 2 and held_out == []


class DeafPolicy(SoftmaxPolicy):
    """Samples fixed texts whatever is published, so that the real learner can be run without a real engine."""

    async def load(self, folder: Path, version: int) -> Digests:
        from safetensors.torch import load_file

        assert (folder / "model.safetensors").is_file()
        self.version = version
        weights = load_file(folder / "model.safetensors")
        head = {"lm_head.weight": weights["model.embed_tokens.weight"]}
        return {name: digest(weight) for name, weight in (head | weights).items()}


@pytest.mark.deepspeed
@pytest.mark.bubblewrap
async def test_a_step_in_real_sandboxes_with_the_real_learner_keeps_a_model_and_tells_its_speed(tmp_path: Path) -> None:
    suite = toy_suite(tmp_path / "suite")
    keys = {
        "tasks": {"suite": suite.path},
        "model": {"path": tiny_model(tmp_path / "model"), "context": 2048},
        "sandbox": {"backend": "bubblewrap", "concurrency": 2},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "max_turns": 2},
        "policy": {"publish_tolerance": 1e3},
        "train": {"eval_every": 1, "steps": 1},
    }
    config = Config.model_validate(keys)
    policy = DeafPolicy(open_chat(config), (RIGHT, SUBMIT))
    with Journal(tmp_path / "run") as journal:
        async with open_world(config, tmp_path / "run", policy) as world:
            await train(config, journal, world)
        (metrics,) = journal.steps().values()
    assert metrics["batch/kept_groups"] > 0 and metrics["eval/instances"] == 1 and metrics["eval/infra"] == 0
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert metrics["speed/flops_utilisation"] > 0 and metrics["loss/delta_k3"] > 0 and metrics["memory/resident_gb"] > 0.1
