"""What each `greengrad tasks ...` command does; cli.py has parsed its words and turns its exceptions into exit codes."""

import argparse
import asyncio
import logging
import sys
from collections import Counter

from .config import SandboxConfig

log = logging.getLogger(__name__)


def tasks_build(arguments: argparse.Namespace) -> int:
    """greengrad tasks build RECIPE --out SUITE."""
    from sandbox import open_backend
    from tasks import build_suite

    from .progress import growing_progress

    backend = open_backend(arguments.sandbox or "auto")
    with growing_progress(f"build {arguments.recipe}") as tell:
        suite = asyncio.run(build_suite(arguments.recipe, arguments.out, backend, tell))
    splits = Counter(task.split for task in suite.tasks)
    print(f"{arguments.out}: {len(suite.tasks)} tasks ({', '.join(f'{count} {split}' for split, count in sorted(splits.items()))})")
    return 0


def tasks_mutate(arguments: argparse.Namespace) -> int:
    """greengrad tasks mutate --package NAME==VER | --repo PATH --out SUITE [-n N]; 1 where no task came of it."""
    from sandbox import open_backend
    from tasks import Request, mutate_suite

    from .progress import growing_progress
    from .rewrite import rewrite_statements, rewriting

    where = (tuple(arguments.modules), tuple(arguments.tests))
    url = arguments.statement_url
    config = rewriting(arguments.out, url, arguments.statement_model) if url else None
    request = Request(arguments.package, arguments.repo, arguments.number, arguments.seed, arguments.split, *where)
    backend = open_backend(arguments.sandbox or "auto")
    with growing_progress(f"mutate {arguments.package or arguments.repo}") as tell:
        suite = asyncio.run(mutate_suite(request, arguments.out, backend, tell))
    if config is not None:
        counts = asyncio.run(rewrite_statements(arguments.out, config))
        kept = "".join(f"; {count} kept ours: {why}" for why, count in sorted(counts.items()) if why)
        print(f"{arguments.out}: {counts['']} statements rewritten{kept}")
    print(f"{arguments.out}: {len(suite.tasks)} tasks; recipe.json makes them again, lineage.jsonl says what became of every bug")
    return 0 if suite.tasks else 1


def tasks_mine(arguments: argparse.Namespace) -> int:
    """greengrad tasks mine --repo PATH_OR_URL --out SUITE [--limit N]."""
    from sandbox import open_backend
    from tasks import Claim, load_issues, mine_suite

    from .progress import growing_progress

    issues = load_issues(arguments.issues) if arguments.issues else {}
    claim = Claim(arguments.repo, arguments.name, arguments.limit, arguments.max_files, arguments.max_lines, issues, arguments.split)
    backend = open_backend(arguments.sandbox or "auto")
    with growing_progress(f"mine {arguments.repo}") as tell:
        suite = asyncio.run(mine_suite(claim, arguments.out, backend, tell, arguments.jobs or 2))
    print(f"{arguments.out}: {len(suite.tasks)} tasks; lineage.jsonl says what became of every candidate")
    return 0


def tasks_validate(arguments: argparse.Namespace) -> int:
    """greengrad tasks validate SUITE [--repeats K] [--keep OUT]; 0 where every task is sound, or the sound ones were to be kept."""
    from tasks import keep_tasks

    from .suite import validate
    from .tables import print_validations

    if arguments.keep:
        keep_tasks(arguments.suite, arguments.keep, [])  # a folder that will not do is refused before hours of work
    sandbox = SandboxConfig(backend=arguments.sandbox or "auto")
    found = asyncio.run(validate(arguments.suite, sandbox, arguments.repeats, arguments.jobs or 2))
    print_validations(found)
    if arguments.keep:
        kept = keep_tasks(arguments.suite, arguments.keep, [one.instance_id for one in found if one.sound])
        print(f"{arguments.keep}: the {kept} sound tasks")
        return 1 if any(one.failed for one in found) else 0
    return 0 if all(one.sound for one in found) else 1


def tasks_list(arguments: argparse.Namespace) -> int:
    """greengrad tasks list SUITE [filters]; 1 where a row cannot be read."""
    from tasks import choose, load_suite

    from .actor import task_filter
    from .config import TasksConfig
    from .tables import print_counts, print_tasks

    suite = load_suite(arguments.suite)
    wanted = TasksConfig(
        suite=arguments.suite,
        repositories=tuple(arguments.repository),
        languages=tuple(arguments.language),
        difficulties=tuple(arguments.difficulty),
        max_patch_lines=arguments.max_patch_lines,
        max_files=arguments.max_files,
        decontaminate=tuple(arguments.decontaminate),
    )
    chosen, dropped = choose([task for task in suite.tasks if arguments.split in (None, task.split)], task_filter(wanted))
    print_counts(chosen, dropped)
    print_tasks(chosen, None if arguments.all else 100)
    for name, what in suite.broken.items():
        print(f"{arguments.suite}: {name}: {what}", file=sys.stderr)
    return 1 if suite.broken else 0


def tasks_export(arguments: argparse.Namespace) -> int:
    """greengrad tasks export SUITE --format FORMAT --out DIR; 1 where a task is left out, which is told with the reason."""
    from dataclasses import replace

    from tasks import export_suite, load_suite

    suite = load_suite(arguments.suite)
    chosen = tuple(task for task in suite.tasks if arguments.split in (None, task.split))
    found = export_suite(replace(suite, tasks=chosen), arguments.format, arguments.out)
    for name, what in {**suite.broken, **found.left_out}.items():
        print(f"{arguments.suite}: {name}: {what}", file=sys.stderr)
    print(f"{arguments.out}: {found.written} tasks")
    return 1 if suite.broken or found.left_out else 0
