"""How many scripted episodes replay exactly, and what it costs: record N episodes of a suite by three agents, replay each.

python scripts/bench/replay.py SUITE [--out DIR] [--episodes 200] [--sandbox bubblewrap] [-j 2] [--quick] [--json FILE]

Agents: the gold expert (view, edit, visible tests, submit); an explorer (listings, times, searches, the whole test suite); a tinkerer
(temporary files, addresses, background jobs, new and deleted files). An existing DIR goes on where it was.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.config import Config
from pipeline.config_io import dump_config, load_config
from pipeline.journal import Journal
from pipeline.replay import Replayed, replay_run
from pipeline.suite import roll_out
from tasks import Task, load_suite

SPEEDS = "-k 'not near_linear and not quickly'"
"""Tests of mistune that assert a ratio of wall times: on a busy machine they fail now and then, by themselves."""
EXPLORER = [
    "ls -la; date",
    "find . -name '*.py' -not -path './.git/*' | head -n 20; git status --short; git log -1 --format=%H",
    "grep -rn 'def ' --include='*.py' . | head -n 40",
    f"timeout 50 python -m pytest -q -x {SPEEDS} 2>&1 | tail -n 5",
    "time python -c 'import sys; print(sys.version)'",
    "python -m pytest --collect-only -q 2>&1 | tail -n 5; nproc; id -un; pwd; env | sort | head -n 20",
]
TINKERER = [
    "d=$(mktemp -d); echo $d; ls -ld $d; python -c 'import tempfile; print(tempfile.mkstemp()[1])'",
    "python -c 'print(object(), print); import time; print(time.time(), time.ctime())'",
    "sleep 0.2 & echo started; wait; cat no-such-file; exit 7",
    "for f in $(git ls-files '*.py' | sort | head -n 5); do echo '# touched' >> $f; done; git diff --stat | tail -n 1",
    "rm -rf docs README*; mkdir -p new/deep; seq 5000 > new/deep/numbers.txt; ln -s deep new/link; chmod 700 new/deep",
    "seq 100000; echo done",
    "python -c 'import traceback\ntry: 1/0\nexcept Exception: traceback.print_exc()'",
]


@dataclass(frozen=True, slots=True)
class Agent:
    """Who acts, and what came of it."""

    name: str
    run: Path
    config: Config
    tasks: list[Task]


def main() -> None:
    """Record and replay, agent by agent."""
    arguments = parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tasks = list(load_suite(arguments.suite).tasks)
    total = 12 if arguments.quick else arguments.episodes
    rows, wrong = [], []
    for agent in make_agents(arguments, tasks, total):
        started = time.monotonic()
        asyncio.run(roll_out(agent.config, agent.tasks, agent.run))
        recorded = time.monotonic() - started
        with Journal(agent.run, readonly=True) as journal:
            names = [row.episode_id for row in journal.rows()]
        started = time.monotonic()
        found = asyncio.run(replay_run(agent.config, agent.run, names))
        rows.append(measure(agent, found, recorded, time.monotonic() - started))
        wrong += [f"{agent.name}: {one.episode_id}: {one.error or one.divergence}" for one in found if one.error or one.divergence]
    show(rows, wrong)
    if arguments.json:
        arguments.json.write_text(json.dumps({"agents": rows, "differences": wrong}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-replay"))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--sandbox", choices=("docker", "bubblewrap", "auto"), default="auto")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def make_agents(arguments: argparse.Namespace, tasks: list[Task], total: int) -> list[Agent]:
    """The two scripts once a task, as far as a third of the episodes goes; the gold expert takes what is left over."""
    made = []
    for place, (name, commands) in enumerate({"explorer": EXPLORER, "tinkerer": TINKERER, "gold": None}.items()):
        run = arguments.out / name
        run.mkdir(parents=True, exist_ok=True)
        policy = "gold"
        if commands is not None:
            script = arguments.out / f"{name}.json"
            script.write_text(json.dumps({"*": [{"name": "bash", "arguments": {"command": command}} for command in commands]}))
            policy = f"script:{script}"
        third = min(total // 3, len(tasks))
        count = third if place < 2 else total - 2 * third
        size = -(-count // len(tasks))
        keys = {
            "tasks.suite": str(arguments.suite),
            "rollout.policy": policy,
            "rollout.max_turns": 100,
            "rollout.group_size": size,
            "sandbox.backend": arguments.sandbox,
            "sandbox.concurrency": arguments.jobs,
        }
        config = load_config(None, [word for key, value in keys.items() for word in (f"--{key}", str(value))], Config)
        dump_config(config, run / "config.yaml")
        made.append(Agent(name, run, config, tasks[: -(-count // size)]))
    return made


def measure(agent: Agent, found: list[Replayed], recorded: float, replayed: float) -> dict[str, float | str]:
    """One row."""
    return {
        "agent": agent.name,
        "episodes": len(found),
        "turns": sum(one.turns for one in found),
        "exact": sum(not one.error and not one.divergence for one in found),
        "infra": sum(bool(one.error) for one in found),
        "record_seconds": round(recorded, 1),
        "replay_seconds": round(replayed, 1),
    }


def show(rows: list[dict[str, float | str]], wrong: list[str]) -> None:
    """A table and every difference."""
    print("| agent | episodes | turns | replay exactly | infra | recorded in s | replayed in s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in (*row.values(),)) + " |")
    episodes, exact = (sum(int(row[key]) for row in rows) for key in ("episodes", "exact"))
    print(f"{exact} of {episodes} episodes replay exactly: {exact / max(episodes, 1):.1%}")
    for line in wrong:
        print(line)


if __name__ == "__main__":
    main()
