"""Held-out tasks while a run trains: the resolve rate every few steps, and the model of the best one kept; knows no optimiser.

An evaluation is a folder of its own (RUN/eval-NNNNN, as `greengrad eval` writes it), so a killed one goes on where it was. It samples with
the same seeds each time: what differs is the weights. RUN/best is the export of the step `eval/best_step`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tasks import Task

from .actor import choose_tasks
from .collect import deal
from .config import Config
from .evaluate import Actor, evaluate
from .journal import Journal

if TYPE_CHECKING:
    from .train import World


def choose_held_out(config: Config) -> list[Task]:
    """The tasks of train.eval_split under the filters of `tasks`, whatever earlier runs made of them; none where train.eval_every is 0."""
    if not config.train.eval_every:
        return []
    return choose_tasks(config.tasks.model_copy(update={"history": ()}), config.train.eval_split)


def is_evaluated(config: Config, step: int) -> bool:
    """Every train.eval_every steps, and after the last."""
    every = config.train.eval_every
    return every > 0 and ((step + 1) % every == 0 or step + 1 == config.train.steps)


async def evaluate_held_out(config: Config, journal: Journal, world: "World", step: int) -> dict[str, float]:
    """The rate with the weights that the engine holds after this step; the best so far is exported before the step is committed."""
    if not world.held_out:
        raise ValueError("train.eval_every: there are no held-out tasks; open_world makes them from train.eval_split")
    actor = Actor(f"step {step}", partial(deal, world.policy), config.train.seed)
    rig = replace(world.rig, channel=None, jury=None, rollout=world.rig.rollout.model_copy(update={"continuations": 0}))
    with Journal(journal.run / f"eval-{step:05d}") as record:
        results = await evaluate(actor, world.held_out, rig, record, f"held-out tasks after step {step + 1}")
    best_step, best = find_best(journal.steps()) or (step, -1.0)
    if results.rate > best:
        best_step = step
        await asyncio.to_thread(world.learner.export, journal.run / "best")
    return {
        "eval/resolved": results.rate,
        "eval/instances": float(results.instances),
        "eval/infra": float(results.infra),
        "eval/best_step": float(best_step),
    }


def find_best(steps: Mapping[int, Mapping[str, float]]) -> tuple[int, float] | None:
    """(step, rate) of the best evaluation so far; of equal ones the earliest. None where there is none."""
    rates = [(metrics["eval/resolved"], -step) for step, metrics in steps.items() if "eval/resolved" in metrics]
    return (-max(rates)[1], max(rates)[0]) if rates else None
