"""A suite from one end to the other: evaluate a policy, roll out episodes, grade predictions; knows no learner.

Each writes into one folder (journal, predictions.jsonl, report.json, logs/) and goes on where it was interrupted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tasks import Prediction, Suite, Task, Validation, Verdict, read_verdicts, validate_suite, write_logs, write_report

from .actor import choose_tasks, open_actor, open_chat, open_machines, prepare_machines, token_limits
from .breaker import Breaker
from .config import Config, PolicyConfig, SandboxConfig, TasksConfig
from .evaluate import Work, attempt_all, evaluate_work, newest_episodes
from .journal import Journal
from .progress import growing_progress
from .prompt import ByteTemplate, Chat
from .results import Results, save_results, summarise
from .types import Episode, Policy, Stop
from .world import open_rig


async def evaluate_suite(config: Config, tasks: Sequence[Task], out: Path, served: Policy | None = None, attempts: int = 1) -> Results:
    """`attempts` episodes an instance, and the resolve rate. `served`: the model's policy, where one runs already."""
    return await _play(
        config, make_work(tasks, attempts) if attempts > 1 else [Work(t.instance_id, t) for t in tasks], out, "evaluate", served
    )


def make_work(tasks: Sequence[Task], attempts: int) -> list[Work]:
    """Several episodes of each task, the first of each first."""
    return [Work(f"{task.instance_id}.{number:02d}", task) for number in range(attempts) for task in tasks]


async def roll_out(config: Config, tasks: Sequence[Task], run: Path) -> Results:
    """group_size episodes of each task. predictions.jsonl and report.json hold the first of each."""
    return await _play(config, make_work(tasks, config.rollout.group_size), run, "rollout")


async def _play(config: Config, work: Sequence[Work], out: Path, title: str, served: Policy | None = None) -> Results:
    if config.rollout.prefix is not None:
        raise ValueError("rollout.prefix is read by `train` alone; `greengrad replay --from-turn` starts one episode from a turn")
    chat = open_chat(config)
    rollout, context = token_limits(config)
    with Journal(out) as journal:
        work = await prepare_work(config, work, out)
        log_file = out / "logs" / "vllm.log"
        async with open_rig(config, rollout, chat, context) as rig, open_actor(config, chat, log_file, served) as actor:
            results = priced(await evaluate_work(actor, work, rig, journal, title), config.policy)
        save_results(out, results)
        await asyncio.to_thread(write_artefacts, out, results.policy, work, newest_episodes(journal, work))
    return results


def priced(results: Results, policy: PolicyConfig) -> Results:
    """With what its tokens cost at the configuration's prices."""
    return replace(results, cost=(results.tokens_in * policy.price_in + results.tokens * policy.price_out) / 1e6)


async def grade_predictions(config: Config, tasks: Sequence[Task], predictions: Sequence[Prediction], out: Path) -> Results:
    """A verdict for each patch; an instance of the suite without a prediction is not graded."""
    patches = {one.instance_id: one.model_patch for one in predictions}
    work = [Work(task.instance_id, task) for task in tasks if task.instance_id in patches]
    with Journal(out) as journal:
        check_same_patches(journal, patches)
        work = await prepare_work(config, work, out)
        async with open_rig(config, config.rollout, Chat(ByteTemplate()), 1) as rig:

            async def grade(task: Task, name: str) -> Episode:
                journal.issue(name, task.instance_id, task.instance_id, 0)
                verdict = await rig.grade(task, patches[task.instance_id])
                return Episode(name, task.instance_id, task.instance_id, (), Stop.SUBMITTED, patches[task.instance_id], verdict)

            seconds = await attempt_all(journal, work, grade, "grade", Breaker(config.rollout.infra_stop))
        results = summarise(predictions[0].model_name_or_path, newest_episodes(journal, work), seconds)
        save_results(out, results)
        await asyncio.to_thread(write_artefacts, out, results.policy, work, newest_episodes(journal, work))
    return results


async def validate(path: Path, sandbox: SandboxConfig, repeats: int, jobs: int) -> tuple[Validation, ...]:
    """Gold passes, untouched fails, `repeats` times alike, for every task of a suite."""
    tasks = choose_tasks(TasksConfig(suite=path), None)
    ready = await prepare_machines(sandbox, path, tasks)
    with growing_progress("validate") as tell:
        return await validate_suite(Suite(path, tuple(ready.tasks.values())), open_machines(sandbox), repeats, tell, jobs)


async def prepare_work(config: Config, work: Sequence[Work], out: Path) -> list[Work]:
    """The same work, on sealed tasks."""
    ready = await prepare_machines(config.sandbox, config.tasks.suite, [one.task for one in work], out)
    return [Work(one.name, ready.tasks[one.task.instance_id]) for one in work]


def check_same_patches(journal: Journal, patches: Mapping[str, str]) -> None:
    """A folder holds verdicts of one set of predictions; ValueError where a patch has changed since."""
    for episode in journal.episodes():
        if patches.get(episode.instance_id, episode.patch) != episode.patch:
            raise ValueError(f"{journal.run}: holds a verdict on another patch for {episode.instance_id}; choose another folder")


def write_artefacts(out: Path, model: str, work: Sequence[Work], episodes: Sequence[Episode]) -> None:
    """predictions.jsonl, report.json and logs/ in the official harness' form, one episode an instance: the first."""
    tasks = {one.task.instance_id: one.task for one in work}
    first = {episode.instance_id: episode for episode in reversed(episodes)}
    verdicts = [_verdict(first[name]) for name in tasks if name in first]
    predictions = [Prediction(name, model, first[name].patch) for name in tasks if name in first]
    written = {verdict.instance_id: verdict.outcome for verdict in read_verdicts(out)}
    for verdict in verdicts:  # an instance that the infrastructure failed in an earlier run has other logs now
        if written.get(verdict.instance_id) != verdict.outcome:
            write_logs(out, tasks[verdict.instance_id], first[verdict.instance_id].patch, verdict)
    write_report(out, verdicts, predictions, Suite(out, tuple(tasks.values())))


def _verdict(episode: Episode) -> Verdict:
    if episode.verdict is None:
        raise RuntimeError(f"{episode.episode_id}: an episode without a verdict cannot be reported")
    return episode.verdict
