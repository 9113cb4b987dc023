"""Many groups at once: per step the chosen tasks, group_size episodes of each; knows run_episode, nothing of what an episode is.

A step's groups are complete before the caller sees them, and the caller comes back for step s when it has trained the steps before.
Then the steps up to s + ahead are admitted: their episodes sample, act and are graded while the caller trains. With ahead 0 that is the
synchronous loop. Machines are limited by the pool, which serves in the order of asking (the oldest step first), requests by the policy.

Claim: a token of step s, trained at version v, was sampled by a version of at least v - ahead. An episode of step s is admitted, so
each of its tokens sampled, after step s - ahead - 1 was trained. From then until step s is trained only the steps s - ahead ... s - 1 are
trained, ahead of them, and each publishes at most once (a step without a signal, never).

A step may take several rounds of tasks until its groups are enough (dynamic sampling). Only whole rounds are asked about, so that
what is kept does not depend on which episodes end first; then a step begins when the groups of the step before are complete, because
only then it is known which tasks are next.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tasks import Task

from .breaker import Breaker
from .gather import gather
from .prefix import Prefixes, choose_prefix
from .rollout import Rig, Slot, run_episode
from .types import Episode, Group, Policy


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
    ahead: int = 0
    """Steps whose episodes run beside the one that the caller waits for or trains on."""
    seed: int = 0
    done: Mapping[str, Episode] = field(default_factory=dict)
    """Finished episodes of interrupted steps by id; they are not repeated."""
    on_episode: Callable[[Episode], None] = ignore
    """Called as each new episode finishes: the journal, the progress bar."""
    earlier_rounds: int | None = None
    """Rounds of tasks that the steps before first_step took; None: one each."""
    prefixes: Prefixes = field(default_factory=dict)
    """What episodes start from, by instance id."""
    enough: Callable[[Sequence[Group]], bool] = satisfied
    """Whether the groups of a step's rounds so far make its batch; asked after each round, until rollout.rounds."""


Actor = Policy | Callable[[Task], Policy]
"""One policy for all tasks (a model), or one for each (a scripted agent; the engine of several that a group goes to)."""


def deal(actor: Actor, task: Task) -> Policy:
    """The policy of one group of episodes."""
    return actor(task) if callable(actor) else actor


@dataclass(frozen=True, slots=True)
class _Collected:
    """A step that is complete."""

    groups: list[Group]
    rounds: int
    """That all steps up to this one took."""


async def collect(actor: Actor, tasks: Sequence[Task], rig: Rig, schedule: Schedule) -> AsyncGenerator[list[Group], None]:
    """The groups of each step, in the order of choose_tasks. InfraStopped where nothing but failures of the infrastructure comes back.

    Close it (contextlib.aclosing) where it may not be used to its end: episodes of later steps run until then.
    """
    breaker = Breaker(rig.rollout.infra_stop)

    def record(episode: Episode) -> None:
        schedule.on_episode(episode)
        breaker.note(episode)

    watched = replace(schedule, on_episode=record)
    running: dict[int, asyncio.Task[_Collected]] = {}
    try:
        for step in range(schedule.first_step, schedule.steps):
            for later in range(step, min(step + schedule.ahead + 1, schedule.steps)):
                if later not in running:
                    running[later] = asyncio.create_task(collect_step(actor, tasks, rig, watched, later, running.get(later - 1)))
            yield (await first_of(running, step)).groups
            running.pop(step - 1, None)
    finally:
        await cancel(list(running.values()))


async def collect_step(
    actor: Actor, tasks: Sequence[Task], rig: Rig, schedule: Schedule, step: int, before: asyncio.Task[_Collected] | None
) -> _Collected:
    """Rounds of tasks until the step's groups are enough; `before`: the step before, None for the first of this process."""
    count, groups = rig.rollout.tasks_per_step, list[Group]()
    if before is not None and rig.rollout.rounds > 1:
        rounds = (await asyncio.shield(before)).rounds
    else:
        rounds = (schedule.first_step if schedule.earlier_rounds is None else schedule.earlier_rounds) + step - schedule.first_step
    for _ in range(rig.rollout.rounds):
        places = enumerate(choose_tasks(tasks, rounds, count, schedule.seed), len(groups))
        groups += await gather([run_group(actor, task, rig, schedule, (step, place)) for place, task in places])
        rounds += 1
        if schedule.enough(groups):
            break
    return _Collected(groups, rounds)


async def first_of(running: Mapping[int, asyncio.Task[_Collected]], step: int) -> _Collected:
    """What the step's task returns; an exception of any task at once."""
    while not running[step].done():
        done, _ = await asyncio.wait([task for task in running.values() if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    return running[step].result()


async def cancel(tasks: Sequence[asyncio.Task[_Collected]]) -> None:
    """End them, and wait until their machines are torn down; what they raise now is not what ended them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run_group(actor: Actor, task: Task, rig: Rig, schedule: Schedule, where: tuple[int, int]) -> Group:
    """The episodes of one task at (step, place in the step); those that are done already are taken as they are."""
    step, place = where
    policy = deal(actor, task)
    group_id = f"{step:05d}.{place:05d}.{task.instance_id}"

    prefix = choose_prefix(schedule.prefixes, task.instance_id, step)

    async def run(slot: Slot) -> Episode:
        if slot.episode_id in schedule.done:
            return schedule.done[slot.episode_id]
        name_task(slot.episode_id)
        episode = await run_episode(policy, task, rig, slot)
        schedule.on_episode(episode)
        return episode

    slots = [Slot(f"{group_id}.{number:02d}", group_id, schedule.seed, step, prefix) for number in range(rig.rollout.group_size)]
    return Group(group_id, task.instance_id, step, tuple(await gather([run(slot) for slot in slots])))


def name_task(name: str) -> None:
    """How a stalled run calls what waits here (recover.py)."""
    if (task := asyncio.current_task()) is not None:
        task.set_name(name)


def choose_tasks(tasks: Sequence[Task], done: int, count: int, seed: int) -> list[Task]:
    """The tasks of a round, after `done` others: consecutive slices of an endless sequence of shuffles; each comes once per shuffle."""
    if not tasks:
        raise ValueError("no tasks to choose from: check tasks.suite, tasks.split and tasks.limit")
    chosen = []
    for position in range(done * count, (done + 1) * count):
        turn, place = divmod(position, len(tasks))
        chosen.append(tasks[int(np.random.default_rng([seed, turn]).permutation(len(tasks))[place])])
    return chosen
