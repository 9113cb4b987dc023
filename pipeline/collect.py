"""Many groups at once: per step the chosen tasks, group_size episodes of each; knows run_episode, nothing of what an episode is.

Synchronous (max_lag 0): a step's groups are complete before the caller sees them, and the next step begins when the caller
comes back, so every token is sampled by the weights of its step. Machines are limited by the pool, requests by the policy.

A step may take several rounds of tasks until its groups are enough (dynamic sampling). Only whole rounds are asked about, so that
what is kept does not depend on which episodes end first.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from tasks import Task

from .breaker import Breaker
from .prefix import Prefixes, choose_prefix
from .rollout import Rig, Slot, run_episode
from .types import Episode, Group, Policy

T = TypeVar("T")


def ignore(episode: Episode) -> None:
    """The callback of those who want none."""


def satisfied(groups: Sequence[Group]) -> bool:
    """One round is enough, whatever came of it."""
    return True


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which steps are collected, and what is already there."""

    steps: int
    """Steps first_step .. steps - 1."""
    first_step: int = 0
    seed: int = 0
    done: Mapping[str, Episode] = field(default_factory=dict)
    """Finished episodes of an interrupted step by id; they are not repeated."""
    on_episode: Callable[[Episode], None] = ignore
    """Called as each new episode finishes: the journal, the progress bar."""
    earlier_rounds: int | None = None
    """Rounds of tasks that the steps before first_step took; None: one each."""
    prefixes: Prefixes = field(default_factory=dict)
    """What episodes start from, by instance id."""
    enough: Callable[[Sequence[Group]], bool] = satisfied
    """Whether the groups of a step's rounds so far make its batch; asked after each round, until rollout.rounds."""


Actor = Policy | Callable[[Task], Policy]
"""One policy for all tasks (a model), or one for each (a scripted agent)."""


async def collect(actor: Actor, tasks: Sequence[Task], rig: Rig, schedule: Schedule) -> AsyncIterator[list[Group]]:
    """The groups of each step, in the order of choose_tasks. InfraStopped where nothing but failures of the infrastructure comes back."""
    breaker = Breaker(rig.rollout.infra_stop)

    def record(episode: Episode) -> None:
        schedule.on_episode(episode)
        breaker.note(episode)

    watched = replace(schedule, on_episode=record)
    done = schedule.first_step if schedule.earlier_rounds is None else schedule.earlier_rounds
    count = rig.rollout.tasks_per_step
    for step in range(schedule.first_step, schedule.steps):
        groups: list[Group] = []
        for _ in range(rig.rollout.rounds):
            places = enumerate(choose_tasks(tasks, done, count, schedule.seed), len(groups))
            groups += await gather([run_group(actor, task, rig, watched, (step, place)) for place, task in places])
            done += 1
            if schedule.enough(groups):
                break
        yield groups


async def run_group(actor: Actor, task: Task, rig: Rig, schedule: Schedule, where: tuple[int, int]) -> Group:
    """The episodes of one task at (step, place in the step); those that are done already are taken as they are."""
    step, place = where
    policy = actor(task) if callable(actor) else actor
    group_id = f"{step:05d}.{place:05d}.{task.instance_id}"

    prefix = choose_prefix(schedule.prefixes, task.instance_id, step)

    async def run(slot: Slot) -> Episode:
        if slot.episode_id in schedule.done:
            return schedule.done[slot.episode_id]
        episode = await run_episode(policy, task, rig, slot)
        schedule.on_episode(episode)
        return episode

    slots = [Slot(f"{group_id}.{number:02d}", group_id, schedule.seed, step, prefix) for number in range(rig.rollout.group_size)]
    return Group(group_id, task.instance_id, step, tuple(await gather([run(slot) for slot in slots])))


def choose_tasks(tasks: Sequence[Task], done: int, count: int, seed: int) -> list[Task]:
    """The tasks of a round, after `done` others: consecutive slices of an endless sequence of shuffles; each comes once per shuffle."""
    if not tasks:
        raise ValueError("no tasks to choose from: check tasks.suite, tasks.split and tasks.limit")
    chosen = []
    for position in range(done * count, (done + 1) * count):
        turn, place = divmod(position, len(tasks))
        chosen.append(tasks[int(np.random.default_rng([seed, turn]).permutation(len(tasks))[place])])
    return chosen


async def gather(work: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All results in order. The first exception cancels the rest, waits until they are torn down, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [one.result() for one in running]
