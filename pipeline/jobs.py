"""What each command does; cli.py has parsed its words and turns its exceptions into exit codes."""

import argparse
import os
import sys
from pathlib import Path

from .config import Config
from .config_io import load_config

GB = 1e9


def plan(arguments: argparse.Namespace) -> int:
    """greengrad plan CONFIG."""
    from .plan import make_plan
    from .tables import print_plan

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print_plan(make_plan(load_config(arguments.config, arguments.overrides, Config), float(memory)))
    return 0


def show(arguments: argparse.Namespace) -> int:
    """greengrad show RUN [EPISODE]."""
    from .journal import Journal
    from .report import evaluations
    from .tables import print_episode, print_run

    with Journal(arguments.run, readonly=True) as journal:
        if arguments.episode:
            print_episode(journal.episode(arguments.episode))
        else:
            print_run(journal, evaluations(arguments.run))
    return 0


def view(arguments: argparse.Namespace) -> int:
    """greengrad view RUN [--export FILE.html]."""
    from .report import write_report

    print(write_report(arguments.run, arguments.export))
    return 0


def tasks_list(arguments: argparse.Namespace) -> int:
    """greengrad tasks list SUITE [--split NAME]."""
    from tasks import load_suite

    from .tables import print_tasks

    suite = load_suite(arguments.suite)
    print_tasks([task for task in suite.tasks if arguments.split in (None, task.split)])
    return report_broken(arguments.suite, suite.broken)


def report_broken(path: Path, broken: dict[str, str]) -> int:
    """One line for each task that could not be read; 1 if there is any."""
    for name, what in broken.items():
        print(f"{path}: {name}: {what}", file=sys.stderr)
    return 1 if broken else 0
