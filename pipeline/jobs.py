"""What each command does; cli.py has parsed its words and turns its exceptions into exit codes."""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config, engine_defaults
from .config_io import default_values, dump_config, load_config, override

if TYPE_CHECKING:
    from .results import Results

SCRIPT_TURNS = 1000
"""Turns of a script in `eval`, where no configuration says otherwise."""

log = logging.getLogger(__name__)


def doctor(arguments: argparse.Namespace) -> int:
    """greengrad doctor [--json] [--clean]."""
    from .doctor import clean, examine
    from .tables import print_checks

    if arguments.clean:
        print(f"removed {asyncio.run(clean())} sandboxes that dead processes left behind", file=sys.stderr)
    checks = asyncio.run(examine())
    if arguments.json:
        print(json.dumps({check.name: {"ok": check.ok, "detail": check.detail} for check in checks}, indent=2))
    else:
        print_checks(checks)
    return 0 if any(check.ok for check in checks if check.name in ("docker", "bubblewrap")) else 1


def plan(arguments: argparse.Namespace) -> int:
    """greengrad plan CONFIG."""
    from .plan import make_plan
    from .tables import print_plan

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    config = load_config(arguments.config, arguments.overrides, Config)
    print_plan(make_plan(config, float(memory)))
    if arguments.cluster is not None:
        from .cluster import connect, survey
        from .placement import assign_roles, describe_roles

        connect(arguments.cluster)
        print("\n".join(["", *describe_roles(assign_roles(survey(config, arguments.config.parent), config))]))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """greengrad eval SUITE --policy ... --out DIR."""
    from .actor import choose_tasks
    from .suite import evaluate_suite

    config = eval_config(arguments)
    tasks = choose_tasks(config.tasks, arguments.split)
    start_run(arguments.out, config)
    return conclude(asyncio.run(evaluate_suite(config, tasks, arguments.out, attempts=arguments.attempts)), arguments.out)


def eval_config(arguments: argparse.Namespace) -> Config:
    """The file of --config, if any, with the options of `eval` in it."""
    words = override("tasks.suite", arguments.suite)
    if arguments.limit:
        words += override("tasks.limit", arguments.limit)
    words += policy_words(arguments.policy, arguments.config is None)
    config = load_config(arguments.config, [*words, *sandbox_overrides(arguments), *arguments.overrides], Config)
    if config.rollout.demonstration is not None:
        raise ValueError("rollout.demonstration is for `greengrad rollout`: with a worked example in the prompt nothing else is comparable")
    return config


def policy_words(policy: str, alone: bool) -> list[str]:
    """gold | noop | script:FILE | model:DIR | URL as keys of the configuration; `alone`: no file says otherwise."""
    kind, _, name = policy.partition(":")
    words: list[str] = []
    if kind in ("http", "https"):
        words += [*override("policy.url", policy), *override("rollout.policy", "model")]
        words += override("policy.api", "chat") if alone else []
        for key, value in engine_defaults().items():  # what a file says of an engine of our own is of no use here
            words += [f"--policy.{key}", str(value)]
    elif kind == "model" and name:
        words += [*override("model.path", name), *override("rollout.policy", "model")]
    elif policy in ("gold", "noop") or (kind == "script" and name):
        words += override("rollout.policy", policy)
        if alone:
            words += override("rollout.max_turns", SCRIPT_TURNS)
    else:
        raise ValueError(f"--policy {policy}: choose gold, noop, script:FILE, model:DIR or a URL")
    return words


def grade(arguments: argparse.Namespace) -> int:
    """greengrad grade SUITE --predictions FILE --out DIR."""
    from tasks import Suite, load_predictions

    from .actor import choose_tasks
    from .suite import grade_predictions

    config = load_config(None, [*override("tasks.suite", arguments.suite), *sandbox_overrides(arguments)], Config)
    tasks = choose_tasks(config.tasks, None)
    predictions = load_predictions(arguments.predictions, Suite(arguments.suite, tuple(tasks)))
    if not predictions:
        raise ValueError(f"{arguments.predictions}: holds no predictions")
    start_run(arguments.out, config)
    return conclude(asyncio.run(grade_predictions(config, tasks, predictions, arguments.out)), arguments.out)


def rollout(arguments: argparse.Namespace) -> int:
    """greengrad rollout CONFIG [--tasks SUITE] [--run DIR]."""
    from .actor import check_demonstration, choose_tasks
    from .suite import roll_out

    words = override("tasks.suite", arguments.tasks) if arguments.tasks else []
    config = load_config(arguments.config, [*words, *arguments.overrides], Config)
    run = arguments.run or Path("runs") / config.name
    tasks = choose_tasks(config.tasks, config.tasks.split)
    check_demonstration(config, tasks)
    start_run(run, config)
    return conclude(asyncio.run(roll_out(config, tasks, run)), run)


def show(arguments: argparse.Namespace) -> int:
    """greengrad show RUN [EPISODE]."""
    from .jobs_runs import find_files
    from .journal import Journal
    from .report import evaluations
    from .tables import print_episode, print_run

    with Journal(arguments.run, readonly=True) as journal:
        if arguments.episode:
            episode = journal.episode(arguments.episode)
            print_episode(episode, find_files(arguments.run, episode.instance_id))
        else:
            print_run(journal, evaluations(arguments.run))
    return 0


def view(arguments: argparse.Namespace) -> int:
    """greengrad view RUN [--export FILE.html]."""
    from .report import write_report

    print(write_report(arguments.run, arguments.export))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """greengrad compare RUN_A RUN_B [--json]."""
    from dataclasses import asdict

    from .compare import compare_runs
    from .tables import print_comparison

    found = compare_runs(arguments.a, arguments.b, arguments.seed)
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print_comparison(found, str(arguments.a), str(arguments.b))
    return 0


def curriculum(arguments: argparse.Namespace) -> int:
    """greengrad curriculum RUN [RUN ...] [--out FILE]."""
    from .curriculum import read_records, write_records
    from .tables import print_curriculum

    records = read_records(arguments.runs).values()
    print_curriculum(list(records))
    if arguments.out:
        write_records(arguments.out, records)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """greengrad export RUN --format FORMAT --out DIR."""
    from .export import export_run

    found = export_run(arguments.run, arguments.format, arguments.out)
    left_out = f"; {found.empty} without a turn are left out" if found.empty else ""
    print(f"{arguments.out}: {found.written} episodes{left_out}")
    return 0


def import_run(arguments: argparse.Namespace) -> int:
    """greengrad import FILE ... --tasks SUITE --out RUN."""
    from tasks import load_suite

    from .imports import Reading, import_trajectories

    reading = Reading(arguments.action_format, arguments.observation_chars, arguments.trust)
    found = import_trajectories(arguments.sources, load_suite(arguments.tasks).tasks, arguments.out, reading)
    print(f"{arguments.out}: {found.episodes} episodes")
    for reason, count in sorted(found.left_out.items(), key=lambda one: -one[1]):
        print(f"left out: {count} {reason}")
    return 0


def grams(arguments: argparse.Namespace) -> int:
    """greengrad grams RUN [RUN ...] --out FILE."""
    from .grams import mine_grams, write_grams
    from .journal import Journal

    if arguments.out.exists():
        raise ValueError(f"{arguments.out}: is there already; choose a new file")
    episodes = []
    for run in arguments.runs:
        with Journal(run, readonly=True) as journal:
            episodes += [episode for episode in journal.episodes() if episode.reward == 1.0]
    clusters = mine_grams(episodes, arguments.action_format, arguments.seed)
    write_grams(arguments.out, clusters, len(episodes))
    print(f"{arguments.out}: {sum(len(one.grams) for one in clusters)} grams in {len(clusters)} clusters, of {len(episodes)} episodes")
    return 0


def regrade(arguments: argparse.Namespace) -> int:
    """greengrad regrade DIR: no sandbox, the saved logs alone."""
    from tasks import regrade as grade_again

    verdicts = grade_again(arguments.folder)
    counts = Counter(verdict.outcome.value for verdict in verdicts)
    official = sum(bool(verdict.official) for verdict in verdicts)
    differs = f" (official: {official} resolved)" if official != counts["resolved"] else ""
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{arguments.folder}: {len(verdicts)} verdicts: {told}{differs}")
    return 1 if counts["infra"] else 0


def conclude(results: "Results", out: Path) -> int:
    """Print the figures; 1 where the infrastructure failed instances, which the same command attempts again."""
    from .tables import print_results

    print_results({results.policy: results})
    if results.infra:
        missing = f"{results.infra} of {results.instances} have no verdict (infrastructure)"
        print(f"{out}: {missing}; the same command attempts them again", file=sys.stderr)
    return 1 if results.infra else 0


def sandbox_overrides(arguments: argparse.Namespace) -> list[str]:
    """--sandbox, --audit and -j as keys of the configuration."""
    words = override("sandbox.backend", arguments.sandbox) if arguments.sandbox else []
    words = [*words, *(override("tasks.audit", arguments.audit) if arguments.audit else [])]
    return [*words, *(override("sandbox.concurrency", arguments.jobs) if arguments.jobs else [])]


def start_run(run: Path, config: Config) -> None:
    """config.yaml and manifest.json of a new run; for one that goes on, the same configuration is demanded."""
    from .actor import check_actor
    from .manifest import make_manifest, write_manifest

    check_actor(config)
    if (run / "journal.sqlite").exists() and not (run / "manifest.json").exists():
        raise ValueError(f"{run}: holds episodes that no configuration made (of `greengrad import`?); choose another run folder")
    run.mkdir(parents=True, exist_ok=True)
    texts = [path for path in (config.planning.grams, config.rollout.demonstration) if path is not None and path.is_file()]
    seeds = {"train": config.train.seed, "learner": config.learner.seed, "policy": config.policy.seed}
    for line in write_manifest(run, make_manifest(config, [config.tasks.suite, *texts], seeds), default_values(Config)):
        log.warning("going on although %s", line)
    dump_config(config, run / "config.yaml")
