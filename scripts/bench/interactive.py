#!/usr/bin/env python3
"""Interactive tasks: what asking is worth, and what a user that drifts does to the agent that learns from it, with and without the filter.

    python scripts/bench/interactive.py [--quick] [--json FILE]

No model and no real machine: a file with a wrong number, an issue whose second sentence says the right one (2 to 5), and that sentence is
withheld. The agent reads, asks or guesses, and does what it was told; its only choice that is learned is its first action (five answers,
exact policy gradient, the loop and the batches of `greengrad train`). A user that drifts denies or invents; drift.py finds all of these,
so the filter is at its best here. Returns after training are with a user that does not drift.
"""

import argparse
import asyncio
import json
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.action import ASK_USER, render
from pipeline.config import Config, CreditConfig, OptimConfig, RolloutConfig, TasksConfig, TrainConfig, UserConfig
from pipeline.fake import MemoryMachines, SoftmaxLearner, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.train import World, train
from pipeline.types import Completion, Episode, ToolCall
from pipeline.user import ScriptedSpeaker, User
from sandbox import FakeSandbox, Image, Sandbox
from tasks import Outcome, Task, Verdict

VALUES = range(2, 6)
RATES = (0.0, 0.25, 0.5, 0.75, 0.9)
ASK = render(ToolCall(ASK_USER, {"question": "What should it be?"}))
SUBMIT = render(ToolCall("submit", {}))
SHOULD = re.compile(r"should be (\d+)")


def write(value: int) -> str:
    """The edit that sets the number."""
    return render(ToolCall("edit", {"path": "rate.py", "old": "RATE = 0", "new": f"RATE = {value}"}))


TEXTS = (ASK, *(f"I guess.\n{write(value)}" for value in VALUES))


class Reader(SoftmaxPolicy):
    """Does what it reads; where it has read nothing, it chooses: to ask, where it can, or one of four guesses."""

    can_ask = True

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """What follows from the last message, else a choice with its log-prob."""
        last = self.chat.template.decode(list(prompt)[_last(prompt) :])
        if last.startswith(("edited", "error")):
            return self._say(SUBMIT)
        if told := SHOULD.search(last):
            value = int(told[1])
            return self._say(write(value if "not so" not in last else VALUES[(value - 1) % len(VALUES)]))
        if last.startswith("`rate`"):
            return await super().sample(prompt, max_tokens, seed) if self.can_ask else self._guess(seed)
        return self._guess(seed)

    def _guess(self, seed: int) -> Completion:
        return self._say(write(int(np.random.default_rng(seed).choice(VALUES))))

    def _say(self, text: str) -> Completion:
        ids = tuple(self.chat.write(text))
        return Completion(ids, (0.0,) * len(ids), text, self.version, stopped=True)


def _last(prompt: Sequence[int]) -> int:
    """Where the last message before the answer begins."""
    heads = [place for place, value in enumerate(prompt) if value == 257]
    return heads[-2] + 1


def make_task(value: int) -> Task:
    """A wrong number."""
    statement = f"`rate` is wrong. It should be {value}."
    patch = f"--- a/rate.py\n+++ b/rate.py\n@@ -1 +1 @@\n-RATE = 0\n+RATE = {value}\n"
    return Task(
        f"rate-{value}", "r", "1", "0" * 40, statement, Image("none"), patch, "", "", "parse_log_pytest", ("t",), (), files=("rate.py",)
    )


async def read_patch(sandbox: Sandbox, image: Image) -> str:
    """What the file says, where it was changed."""
    text = (await sandbox.read("/testbed/rate.py")).decode()
    return "" if text == "RATE = 0\n" else text


async def grade(task: Task, patch: str) -> Verdict:
    """Resolved where the number is the task's."""
    right = patch.strip() == f"RATE = {task.instance_id.removeprefix('rate-')}"
    return Verdict(task.instance_id, Outcome.RESOLVED if right else Outcome.UNRESOLVED if patch else Outcome.NO_PATCH)


def make_rig(settings: UserConfig) -> Rig:
    """Machines in memory, and the user."""
    machines = MemoryMachines(lambda: FakeSandbox(files={"/testbed/rate.py": b"RATE = 0\n"}))
    user = User(ScriptedSpeaker(settings.drift), settings) if settings.ask else None
    rollout = RolloutConfig(tasks_per_step=len(VALUES), group_size=8, max_turns=6, trees=False)
    return Rig(Chat(ByteTemplate(), user=settings), machines, read_patch, grade, rollout, 100_000, 5, 60, user=user)


async def play(policy: Reader, settings: UserConfig, count: int) -> list[Episode]:
    """Episodes on each task in turn."""
    rig = make_rig(settings)
    tasks = [make_task(value) for value in VALUES]
    return [
        await run_episode(policy, tasks[number % len(tasks)], rig, Slot(f"e{number}", "g", seed=settings.seed)) for number in range(count)
    ]


def rate(episodes: Sequence[Episode]) -> float:
    """The share that is resolved."""
    return mean(float(episode.reward or 0.0) for episode in episodes)


async def success(count: int) -> dict[str, float]:
    """Of an agent that asks where it can, else guesses."""
    found = {}
    for name, settings in {
        "whole issue": UserConfig(ask=False, withhold=0.0),
        "under-specified, nobody to ask": UserConfig(ask=False, withhold=1.0),
        "under-specified, ask_user": UserConfig(withhold=1.0),
        "under-specified, ask_user, drift 0.3": UserConfig(withhold=1.0, drift=0.3),
    }.items():
        policy = Reader(Chat(ByteTemplate(), user=settings), TEXTS)
        policy.can_ask = settings.ask
        policy.weights_A[0] = 50.0
        episodes = await play(policy, settings, count)
        found[name] = rate(episodes)
        if settings.drift:
            found["the same, episodes that the filter keeps"] = rate([one for one in episodes if not one.drifted])
    return found


async def learn(drift: float, keep: bool, seed: int, steps: int, folder: Path) -> tuple[float, float]:
    """Return with a user that does not drift, and how likely the agent asks, after so many steps with one that does.

    Exact: who asks such a user is right, and of all other answers one in four is, whatever their chances, over the four tasks.
    """
    settings = UserConfig(withhold=1.0, drift=drift, keep_drifted=keep, seed=seed)
    rig = make_rig(settings)
    policy, learner = Reader(rig.chat, TEXTS), SoftmaxLearner(rig.chat, TEXTS, lr=2.0)
    config = Config(
        tasks=TasksConfig(suite=Path("none")),
        rollout=rig.rollout,
        credit=CreditConfig(length_threshold=10),
        optim=OptimConfig(lr=1.0),
        train=TrainConfig(steps=steps, seed=seed, save_every=steps),
    )
    with Journal(folder) as journal:
        await train(config, journal, World(policy, learner, rig, [make_task(value) for value in VALUES]))
    asks = float(np.exp(policy.log_p()[0]))
    return asks + (1 - asks) / len(VALUES), asks


async def compare(seeds: int, steps: int) -> dict[str, float]:
    """Every rate, with and without the filter: mean over seeds, and its standard error."""
    found = {}
    for drift in RATES:
        for keep in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                ends = [await learn(drift, keep, seed, steps, Path(folder) / str(seed)) for seed in range(seeds)]
            name = f"drift {drift:.2f} {'unfiltered' if keep else 'filtered'}"
            returns, asks = [end[0] for end in ends], [end[1] for end in ends]
            found |= {f"{name}: return": mean(returns), f"{name}: p(ask)": mean(asks)}
            found[f"{name}: error"] = stdev(returns) / seeds**0.5 if seeds > 1 else float("nan")
            print(f"{name:26} return {mean(returns):.3f} +- {found[f'{name}: error']:.3f}  p(ask) {mean(asks):.3f}", flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.ERROR)  # each drift is told, and here that is the point
    figures = asyncio.run(success(40 if options.quick else 400))
    for name, value in figures.items():
        print(f"{name:42} {value:.3f}", flush=True)
    figures |= asyncio.run(compare(2 if options.quick else 6, 4 if options.quick else 12))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
