"""The loop: episodes in sandboxes -> hidden tests -> advantages -> update -> new weights in the engine. Read this first.

Each line is one call into the file that knows how: collect.py (many episodes at once), batch.py and credit.py (rewards to
advantages to tokens), learner.py and loss.py (the update), publish.py (the weights into the engine, verified), journal.py.
The default is modified DAPO (arXiv:2508.03501). Off by default, as there: a KL term, a reference model, an entropy bonus.

Synchronous and asynchronous are this one loop: with train.max_lag the episodes of further steps go on inside `collect` while a step is
trained and published, and staleness.py holds every token to that bound.

A run that was killed goes on with the same command: finished episodes of the open steps are taken from the journal, unfinished ones
go on after their last turn, the learner restarts from its newest checkpoint and repeats the journaled batches since. An update that
was not committed never was: its step is still open, and what its weights have sampled (a later version than the resumed one) is
sampled again.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import Task

from .alarms import describe_alarm, find_alarms
from .batch import is_filled
from .collect import Schedule, collect
from .config import Config
from .held_out import evaluate_held_out, is_evaluated
from .journal import Journal
from .planning import emphasise, plan_batch
from .prefix import load_prefixes
from .publish import measure_weights, passing_folder, publish
from .rollout import Rig
from .sinks import open_sinks
from .stages.hindsight import Lesson, Source, learn, plan_lesson
from .staleness import measure_staleness
from .telemetry import Clock, Yardstick, measure_rollout, measure_speed, measure_traces
from .types import Batch, Group, Learner, Policy

log = logging.getLogger(__name__)

PROBES = 4
"""Samples of each batch on which learner and engine are compared after a publish."""


@dataclass(frozen=True, slots=True)
class World:
    """What a training run acts on: the policy in its engine, the learner on its ranks, machines and graders, the tasks."""

    policy: Policy
    learner: Learner
    rig: Rig
    tasks: Sequence[Task]
    held_out: Sequence[Task] = ()
    """Tasks that are evaluated and never trained on."""
    yardstick: Yardstick | None = None
    """What the learner's speed is compared with; None: it is not."""
    asleep: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    """The engine while the learner takes its step (policy.sleep)."""
    shared_memory: bool = True
    """Learner and engine are on this machine: weights pass between them through its memory, not through the run folder."""
    restarts: int = 0
    """How often this process has opened the run's world again (recover.py)."""

    @property
    def source(self) -> Source:
        """What batches are made with beside the episodes."""
        return Source(self.rig.chat, self.rig.context, self.tasks)


async def train(config: Config, journal: Journal, world: World) -> None:
    """Run the steps that are not yet committed."""
    world = replace(world, rig=replace(world.rig, diary=journal))
    await resume(config, journal, world)
    forget_unborn(journal, world.policy.version)
    with open_sinks(config.telemetry.sinks, journal.run, journal.steps()) as copy:
        prefixes = load_prefixes(config.rollout.prefix, world.rig.chat, world.tasks)
        schedule, clock = replace(plan_steps(config, journal), prefixes=prefixes), Clock()
        async with aclosing(collect(world.policy, world.tasks, world.rig, schedule)) as collected:
            async for groups in collected:
                clock.lap("rollout")
                step = groups[0].step
                metrics = measure_rollout(groups, schedule.done) | measure_traces(groups, world.tasks)
                metrics |= await update(config, journal, world, groups, clock)
                if is_evaluated(config, step):
                    metrics |= await evaluate_held_out(config, journal, world, step)
                    clock.lap("eval")
                metrics |= {"train/version": float(world.policy.version), "train/restarts": float(world.restarts), **clock.take()}
                metrics |= measure_speed(metrics, world.yardstick, overlapped=schedule.ahead > 0)
                journal.commit_step(step, metrics)
                copy(step, metrics)
                prune_checkpoints(journal.run, config.train.keep_checkpoints)
                log.info(describe_step(step, config.train.steps, metrics))
                warn(journal, step)


async def update(config: Config, journal: Journal, world: World, groups: Sequence[Group], clock: Clock) -> dict[str, float]:
    """Learn from the groups of a step, publish and save; without a signal nothing changes."""
    lesson = plan_lesson(config, world.source, groups, world.policy.version)
    journal.record_batch(groups[0].step, lesson.digest, lesson.batch.fates)
    batch, plans = await asyncio.to_thread(plan_batch, lesson.batch, groups, world.rig.chat, config.planning)
    metrics = {**batch.metrics, **plans, **measure_staleness(groups, world.policy.version, config.train)}
    if not batch.samples:
        return metrics
    async with world.asleep():
        metrics |= await asyncio.to_thread(teach, config, world.learner, replace(lesson, batch=batch), groups[0].step)
    clock.lap("learn")
    metrics |= await publish_step(config, journal, world, batch)
    clock.lap("publish")
    if is_saved(config, groups[0].step):
        await asyncio.to_thread(save_checkpoint, journal.run, world.learner, groups[0].step)
        await asyncio.to_thread(world.learner.export, journal.run / "weights")
        clock.lap("save")
    return metrics


def teach(config: Config, learner: Learner, lesson: Lesson, step: int) -> dict[str, float]:
    """One step of the learner, with planning.emphasis where there is any."""
    batch = emphasise(lesson.batch, config.planning, learner, (config.train.seed, step))
    return learn(learner, replace(lesson, batch=batch))


def warn(journal: Journal, step: int) -> None:
    """The alarms that begin at this step."""
    for alarm in find_alarms(journal.steps()):
        if alarm.first == step:
            log.warning("look at this run: %s", describe_alarm(alarm))


def plan_steps(config: Config, journal: Journal) -> Schedule:
    """The open steps; what an interrupted process has finished of them is kept, what this one finishes is recorded."""
    first = journal.next_step
    for step in range(first, config.train.steps):
        if journal.batch(step) is None:  # else what it trains on is decided
            journal.forget_infra(step)
    done = {episode.episode_id: episode for step in range(first, config.train.steps) for episode in journal.episodes(step)}

    def enough(groups: Sequence[Group]) -> bool:
        fill = config.rollout.fill_groups
        return fill is None or is_filled(groups, config.credit, config.rollout.max_turns, fill)

    return Schedule(
        steps=config.train.steps,
        first_step=first,
        ahead=config.train.ahead,
        seed=config.train.seed,
        done=done,
        on_episode=lambda episode: journal.record_episode(episode, _step_of(episode.group_id)),
        earlier_rounds=count_rounds(journal, config.rollout.tasks_per_step),
        enough=enough,
    )


def count_rounds(journal: Journal, tasks_per_step: int) -> int:
    """Rounds of tasks that the committed steps took, from their metrics: an open step may hold groups that it did not need."""
    return sum(int(metrics["batch/groups"]) // tasks_per_step for metrics in journal.steps().values())


async def publish_step(config: Config, journal: Journal, world: World, batch: Batch) -> dict[str, float]:
    """The new weights into the engine, compared on sampled tokens of the batch; PublishError stops the run."""
    probes, version = batch.samples[:PROBES], world.policy.version + 1
    with open_passage(config, journal, world) as folder:
        return await publish(world.learner, world.policy, folder, version, probes=probes, tolerance=config.policy.publish_tolerance)


def open_passage(config: Config, journal: Journal, world: World) -> AbstractContextManager[Path]:
    """Where the run's weights pass from learner to engine."""
    size = measure_weights(config.model.path) if config.model else 0
    return passing_folder(journal.run, size, shared=world.shared_memory)


async def resume(config: Config, journal: Journal, world: World) -> None:
    """Bring learner and engine to where the committed steps left them."""
    steps = journal.steps()
    if not any(_version(metrics) for metrics in steps.values()):
        return
    saved = find_checkpoint(journal.run, journal.next_step)
    if saved is not None:
        await asyncio.to_thread(world.learner.restore, saved)
    for step in steps:
        if saved is not None and step <= _number(saved):
            continue
        version = _version(steps.get(step - 1, {"train/version": 0.0}))
        lesson = plan_lesson(config, world.source, journal.groups(step), version)
        if journal.batch(step) is not None:
            journal.record_batch(step, lesson.digest, lesson.batch.fates)
        if lesson.batch.samples:
            batch, _ = plan_batch(lesson.batch, journal.groups(step), world.rig.chat, config.planning)
            await asyncio.to_thread(teach, config, world.learner, replace(lesson, batch=batch), step)
    with open_passage(config, journal, world) as folder:
        await asyncio.to_thread(world.learner.export, folder, whole=False)
        await world.policy.load(folder, _version(steps[max(steps)]))
    log.info("resumed at step %d with the weights of version %d", journal.next_step, world.policy.version)


def forget_unborn(journal: Journal, version: int) -> None:
    """Episodes of open steps that weights have sampled which were never committed and do not exist any more are attempted again."""
    committed = journal.steps()
    for episode in [journal.episode(row.episode_id) for row in journal.rows() if row.step not in committed]:
        newest = max((turn.completion.newest for turn in episode.turns), default=0)
        if newest > version:
            why = f"version {newest} does not exist: the policy is at {version}"
            journal.forget_episode(episode, _step_of(episode.group_id), why)


def _version(metrics: Mapping[str, float]) -> int:
    return int(metrics["train/version"])


def _step_of(group_id: str) -> int:
    return int(group_id.partition(".")[0])


def is_saved(config: Config, step: int) -> bool:
    """Every save_every steps, and the last."""
    return (step + 1) % config.train.save_every == 0 or step + 1 == config.train.steps


def find_checkpoint(run: Path, next_step: int) -> Path | None:
    """The newest checkpoint of a committed step; one that was written just before a crash is ahead of the journal and not used."""
    folders = sorted((run / "checkpoints").glob("step-?????"))
    return next((folder for folder in reversed(folders) if _number(folder) < next_step), None)


def save_checkpoint(run: Path, learner: Learner, step: int) -> None:
    """checkpoints/step-NNNNN, there whole or not at all."""
    learner.save(run / "checkpoints" / f"step-{step:05d}")


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep`; called after a commit, so that a crash never leaves only a checkpoint that is not committed."""
    for old in sorted((run / "checkpoints").glob("step-?????"))[:-keep]:
        shutil.rmtree(old)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def describe_step(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """One line for a person."""
    reward = f"reward {metrics['reward/channel']:.2f}" if "reward/channel" in metrics else "nothing graded"
    resolved = f"{metrics['reward/resolved']:.0%} resolved" if "reward/resolved" in metrics else reward
    if "eval/resolved" in metrics:
        resolved += f" ({metrics['eval/resolved']:.0%} of {metrics['eval/instances']:.0f} held-out tasks)"
    counts = f"{metrics['batch/mixed_groups']:.0f} of {metrics['batch/groups']:.0f} groups mixed"
    if metrics.get("batch/missing_groups"):
        counts += f" ({metrics['batch/missing_groups']:.0f} fewer than rollout.fill_groups)"
    did = f"published version {metrics['publish/version']:.0f}" if "publish/version" in metrics else "skipped: no signal"
    return f"step {step + 1}/{steps}: {resolved}, {counts}, {did}"
