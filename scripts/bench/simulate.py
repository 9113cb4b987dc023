#!/usr/bin/env python3
"""Up to 10,000 episodes at once, simulated from recorded latencies: where the turns per second bend, and why.

    python scripts/bench/simulate.py [--quick] [--json FILE] [--scale 1] [--check]

A discrete-event simulation of a closed system: E episodes are in flight, and when one ends the next begins. An episode wants a machine
(wiped, and every 16th time started), then 12 turns of: the orchestrator's processor time, an answer of an engine, a command in its
machine; then a grade in a new machine. Every station serves in the order of asking:

    orchestrator   one server (one Python process), ORCHESTRATOR seconds a turn; where nodes play the episodes (greengrad train --cluster)
                   each node has one, and the owner, who only journals, is one more server of OWNER seconds a turn
    engines        REQUESTS at once each; seconds are the recorded quantiles of scripts/bench/rollout.py times --scale
    starts         of machines, STARTERS at a time on each node, START seconds each

What a turn takes if nothing is waited for gives the ideal; bent: fewer turns/s than 90 % of it. Left out: engines that slow down with
more requests (pipeline/cost_rollout.py has that), memory, networks, failures, commands that compete for a node's processors.
--check runs the real orchestrator on engines and machines that sleep, and the simulation of the same, and measures the owner's work.
"""

import argparse
import asyncio
import heapq
import json
import logging
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from rollout import BASH, MODEL_SECONDS, OBSERVATION, TOOL_SECONDS, TURNS, run_episodes

from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.types import Completion, ToolCall, Turn

ORCHESTRATOR = 1.2e-3
"""Processor seconds of a turn in one process: 1.15 ms at 64 at once, 1.22 ms at 2,000 (scripts/bench/rollout.py)."""
OWNER = 0.2e-3
"""Of a turn at the owner where nodes play: 0.18 ms (--check), unpickled and journaled; Ray's own share is not in it."""
WIPE = 14e-3
"""Seconds between two episodes of a machine (docs/LOG.md)."""
REUSE = 16
START, STARTERS = 0.39, 2
"""Of a container, on a node of two processors: 5.1 a second, as scripted episodes with a new machine each (docs/LOG.md)."""
GRADE = 0.42
"""Of tests: 0.72 s a patch, of which 0.3 are its machine."""
REQUESTS = 32
SPREAD = 24
"""Episodes for each engine where engines are not what is scarce: drawn at random, 32 would leave some of them with a queue."""
MACHINES = 64
"""On a node, where their number grows with E."""
SIZES = (64, 128, 256, 512, 1000, 2000, 3000, 4000, 5000, 7000, 10_000)


class Station:
    """So many servers, and who asks first is served first."""

    def __init__(self, name: str, servers: int = 1) -> None:
        self.name, self.busy = name, 0.0
        self._free = [0.0] * servers

    def serve(self, now: float, seconds: float) -> float:
        """When it is done."""
        done = max(now, self._free[0]) + seconds
        heapq.heapreplace(self._free, done)
        self.busy += seconds
        return done


@dataclass(frozen=True, slots=True)
class Setup:
    """Who plays episodes, and how many engines and nodes there are for E of them."""

    name: str
    engines: Callable[[int], int]
    nodes: Callable[[int], int]
    nodes_play: bool = False


def enough(per: int) -> Callable[[int], int]:
    """One for each `per` episodes."""
    return lambda episodes: -(-episodes // per)


SETUPS = (
    Setup("one process", enough(SPREAD), enough(MACHINES)),
    Setup("nodes play", enough(SPREAD), enough(MACHINES), nodes_play=True),
    Setup("nodes play, 16 engines", lambda episodes: 16, enough(MACHINES), nodes_play=True),
    Setup("nodes play, machines on 16 nodes", enough(SPREAD), lambda episodes: 16, nodes_play=True),
)


@dataclass(frozen=True, slots=True)
class Stations:
    """Of one simulation."""

    engines: list[Station]
    starts: list[Station]
    players: list[Station]
    """One, or one on each node."""
    owner: Station | None

    @property
    def kinds(self) -> dict[str, list[Station]]:
        """By name."""
        owner = [self.owner] if self.owner else []
        return {"orchestrator": self.players, "owner": owner, "engines": self.engines, "machine starts": self.starts}


@dataclass(frozen=True, slots=True)
class Result:
    """Of one setup at one E."""

    setup: str
    episodes: int
    turns_per_second: float
    ideal: float
    shares: dict[str, float]
    """Of time that a kind of station is busy, on average."""

    @property
    def scarcest(self) -> str:
        """The kind that is busiest."""
        return max(self.shares, key=lambda kind: self.shares[kind])


Step = tuple[Station | None, float]
"""Where an episode goes next, and for how long; None: it waits for nobody."""


def play(number: int, stations: Stations, draw: random.Random, scale: float, ended: list[int]) -> Iterator[Step]:
    """Episode after episode in one place; `ended` counts turns."""
    node = number % len(stations.starts)
    starts, player = stations.starts[node], stations.players[node % len(stations.players)]
    yield None, draw.random() * sum(MODEL_SECONDS) / len(MODEL_SECONDS) * scale * TURNS  # they did not all begin at once
    while True:
        yield (starts, START) if draw.randrange(REUSE) == 0 else (None, WIPE)
        engine = draw.choice(stations.engines)
        for _ in range(TURNS):
            yield player, ORCHESTRATOR
            yield engine, draw.choice(MODEL_SECONDS) * scale
            yield None, draw.choice(TOOL_SECONDS)
            if stations.owner:
                yield stations.owner, OWNER
            ended[0] += 1
        yield starts, START
        yield None, GRADE


def simulate(setup: Setup, episodes: int, scale: float, seed: int = 0) -> Result:
    """Four times as long as an episode takes that waits for nothing; the second half counts."""
    nodes = setup.nodes(episodes)
    stations = Stations(
        [Station("engine", REQUESTS) for _ in range(setup.engines(episodes))],
        [Station("starts", STARTERS) for _ in range(nodes)],
        [Station("orchestrator") for _ in range(nodes if setup.nodes_play else 1)],
        Station("owner") if setup.nodes_play else None,
    )
    alone = ideal_seconds(scale, setup.nodes_play)
    draw, ended = random.Random(seed), [0]
    running = [(0.0, number, play(number, stations, draw, scale, ended)) for number in range(episodes)]
    _run(running, 2 * alone)
    turns, busy = ended[0], {kind: sum(one.busy for one in group) for kind, group in stations.kinds.items()}
    _run(running, 4 * alone)
    servers = {"engines": REQUESTS, "machine starts": STARTERS}
    shares = {
        kind: min((sum(one.busy for one in group) - busy[kind]) / (2 * alone * len(group) * servers.get(kind, 1)), 1.0)
        for kind, group in stations.kinds.items()
        if group
    }
    return Result(setup.name, episodes, (ended[0] - turns) / (2 * alone), episodes * TURNS / alone, shares)


def _run(running: list[tuple[float, int, Iterator[Step]]], until: float) -> None:
    """In the order of time, so that stations are asked in that order."""
    heapq.heapify(running)
    while running[0][0] < until:
        now, number, episode = running[0]
        station, seconds = next(episode)
        heapq.heapreplace(running, (station.serve(now, seconds) if station else now + seconds, number, episode))


def ideal_seconds(scale: float, nodes_play: bool) -> float:
    """Of an episode that waits for nothing."""
    turn = sum(MODEL_SECONDS) / len(MODEL_SECONDS) * scale + sum(TOOL_SECONDS) / len(TOOL_SECONDS)
    turn += ORCHESTRATOR + (OWNER if nodes_play else 0.0)
    return TURNS * turn + START / REUSE + WIPE * (1 - 1 / REUSE) + START + GRADE


# --- beside the real one -------------------------------------------------------------------------------------------


def check(quick: bool, scale: float = 0.3) -> list[dict[str, float]]:
    """The real orchestrator with so many at once, and the simulation with the processor time that the real one took."""
    rows = []
    for at_once in (64, 500) if quick else (64, 500, 1000, 2000):
        asyncio.run(run_episodes(Chat(ByteTemplate()), 8, 8, 0.01))  # imports and caches
        began = time.monotonic()
        found = asyncio.run(run_episodes(Chat(ByteTemplate()), at_once, 2 * at_once, scale))
        rate = 2 * at_once * TURNS / (time.monotonic() - began)
        rows.append(
            {
                "at_once": at_once,
                "cpu_ms": found["cpu_ms"],
                "measured": rate,
                "simulated": batch_rate(at_once, scale, found["cpu_ms"] / 1e3),
            }
        )
    return rows


def batch_rate(at_once: int, scale: float, player_seconds: float) -> float:
    """Turns/s of 2 x at_once episodes that all wait to begin, machines and grades for nothing, as in scripts/bench/rollout.py."""
    player, draw, last = Station("orchestrator"), random.Random(0), 0.0

    def two() -> Iterator[Step]:
        for _ in range(2 * TURNS):
            yield player, player_seconds
            yield None, draw.choice(MODEL_SECONDS) * scale + draw.choice(TOOL_SECONDS) * scale

    running = [(0.0, number, two()) for number in range(at_once)]
    while running:
        now, number, episode = heapq.heappop(running)
        last = now
        if step := next(episode, None):
            heapq.heappush(running, (step[0].serve(now, step[1]) if step[0] else now + step[1], number, episode))
    return 2 * at_once * TURNS / last


def measure_owner(episodes: int = 200) -> float:
    """Seconds a turn at the owner: unpickle what a node sends, write it down."""
    chat = Chat(ByteTemplate())
    ids = tuple(chat.write(BASH))
    done = Completion(ids, (-0.5,) * len(ids), BASH, 0, True)
    prompt: tuple[int, ...] = tuple(chat.write("x" * 1000))
    sent = []
    for _ in range(TURNS):
        sent.append(pickle.dumps(Turn(prompt, done, ToolCall("bash", {"command": "true"}), OBSERVATION.decode())))
        prompt = (*prompt, *ids, *chat.write(OBSERVATION.decode()))
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        began = time.process_time()
        for number in range(episodes):
            journal.issue(name := f"00000.{number}", "g", "t", 0)
            turns: list[Turn] = []
            for text in sent:
                turns.append(pickle.loads(text))
                journal.record_turn(name, turns)
        return (time.process_time() - began) / (episodes * TURNS)


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 episodes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--scale", type=float, default=1.0, help="of the recorded seconds of an answer (mean 3.5)")
    parser.add_argument("--check", action="store_true", help="beside the real orchestrator (two minutes)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    figures: dict[str, object] = {"scale": options.scale}
    if options.check:
        figures |= {"owner_ms": 1e3 * measure_owner(), "check": check(options.quick)}
        print(json.dumps(figures, indent=1))
    else:
        results = [
            simulate(setup, size, options.scale) for setup in SETUPS for size in SIZES if size <= (1000 if options.quick else 10_000)
        ]
        print("| | episodes at once | turns/s | of the ideal | busiest: share of its time |\n|---|---|---|---|---|")
        for one in results:
            busiest = f"{one.scarcest} {100 * one.shares[one.scarcest]:.0f} %"
            print(f"| {one.setup} | {one.episodes:,} | {one.turns_per_second:,.0f} | {one.turns_per_second / one.ideal:.2f} | {busiest} |")
        figures["results"] = [asdict(one) for one in results]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
