"""What `greengrad replay` and `audit` do with a recorded run; cli.py has parsed their words and turns exceptions into exit codes."""

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config
from .config_io import load_config

if TYPE_CHECKING:
    from .ledger import Ledger
    from .replay import Replayed


def run_replay(arguments: argparse.Namespace) -> int:
    """greengrad replay RUN EPISODE | --all; 1 where something comes out differently or could not be replayed."""
    from .journal import Journal
    from .replay import replay_run

    if arguments.all == bool(arguments.episode):
        raise ValueError("name one EPISODE, or give --all")
    if arguments.from_turn:
        return _go_on(arguments)
    if arguments.policy or arguments.out:
        raise ValueError("--policy and --out are read only with --from-turn")
    config = recorded_config(arguments)
    with Journal(arguments.run, readonly=True) as journal:
        names = [row.episode_id for row in journal.rows()] if arguments.all else [arguments.episode]
    found = asyncio.run(replay_run(config, arguments.run, names))
    for one in found:
        if arguments.json:
            print(json.dumps(asdict(one)))
        elif one.divergence or one.error or not arguments.all:
            print(f"{one.episode_id}: {describe(one)}")
    exact = sum(not one.divergence and not one.error for one in found)
    if arguments.all and not arguments.json:
        print(f"{exact} of {len(found)} episodes replay exactly")
    return 0 if exact == len(found) else 1


def describe(one: "Replayed") -> str:
    """One line on a replayed episode."""
    if one.error:
        return f"not replayed (infrastructure): {one.error}"
    return str(one.divergence) if one.divergence else f"replays exactly ({one.turns} turns and the verdict, {one.seconds:.1f} s)"


def recorded_config(arguments: argparse.Namespace) -> Config:
    """The configuration of the run, or of the one whose folder it lies in, with what the command line changes of it."""
    from .jobs import policy_words, sandbox_overrides

    places = [folder / "config.yaml" for folder in (arguments.run, arguments.run.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{places[0]}: missing; is {arguments.run} a run folder?")
    words = policy_words(arguments.policy, False) if arguments.policy else []
    return load_config(path, [*words, *sandbox_overrides(arguments), *arguments.overrides], Config)


def find_files(run: Path, instance_id: str) -> tuple[str, ...]:
    """What the gold patch of a run's task changes; () where the run's suite is not here any more, or says nothing of it."""
    from tasks import load_suite

    path = next((place / "config.yaml" for place in (run, run.parent) if (place / "config.yaml").is_file()), None)
    if path is None:
        return ()
    try:
        tasks = load_suite(load_config(path, [], Config).tasks.suite).tasks
    except (ValueError, OSError):  # it is shown without: the record is read, not the suite
        return ()
    return next((task.files for task in tasks if task.instance_id == instance_id), ())


def _go_on(arguments: argparse.Namespace) -> int:
    from .jobs import start_run
    from .replay import continue_from
    from .tables import print_episode

    if arguments.all or arguments.out is None:
        raise ValueError("--from-turn needs one EPISODE and --out DIR, where the new episode is recorded")
    config = recorded_config(arguments)
    start_run(arguments.out, config)
    episode = asyncio.run(continue_from(config, arguments.run, arguments.episode, arguments.from_turn, arguments.out))
    print_episode(episode)
    print(f"{arguments.out}: {episode.episode_id}, {len(episode.turns)} turns after {len(episode.prefix)}")
    return 0 if episode.reward is not None else 1


def run_audit(arguments: argparse.Namespace) -> int:
    """greengrad audit RUN; 1 where the ledger does not add up, one line for each contradiction."""
    from .ledger import check_run

    ledgers = check_run(arguments.run)
    for ledger in ledgers:
        if arguments.json:
            print(json.dumps(asdict(ledger), default=str))
        else:
            _print_ledger(ledger)
    return 1 if any(ledger.faults for ledger in ledgers) else 0


def _print_ledger(ledger: "Ledger") -> None:
    under_way = ledger.issued - ledger.finished
    print(f"{ledger.run}: {ledger.issued} episodes issued, {ledger.finished} finished, {under_way} under way, {ledger.steps} steps")
    for title, counts in (("fates", ledger.fates), ("verdicts", ledger.outcomes), ("events", ledger.events)):
        if counts:
            print(f"  {title}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}")
    for note in ledger.notes:
        print(f"  note: {note}")
    for fault in ledger.faults:
        print(f"  contradiction: {fault}")
    print("  the ledger adds up" if not ledger.faults else f"  {len(ledger.faults)} contradictions")
