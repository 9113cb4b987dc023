#!/usr/bin/env python3
"""What the orchestrator costs: a step beside the slower of its two paths, overhead and CPU of a turn, many episodes, an idle engine.

    python scripts/bench/rollout.py [--quick] [--json FILE] [--only PART ...] [--mini PYTHON] [--model FOLDER]

    steps    train() with recorded model latencies, sleeping tools, graders and learner: a step with train.max_lag 0, 1 and 2, over the
             larger of the rollout path (the same without a learner) and the learner path (update and publish)
    turns    wall of an episode less what its sleeps took, per turn; how late these ended; processor time per turn; beside mini-swe-agent's
             batch runner where --mini names a Python that has it (python -m venv V; V/bin/pip install mini-swe-agent), with the same
             sleeps and texts
    crowd    2,000 scripted episodes at once in this process: memory
    engine   the real vLLM (--model) and real sandboxes beside a learner that sleeps: share of the time in which no request runs

Latencies are 32 quantiles of the turns of an evaluation of SmolLM2-135M on two cores (docs/LOG.md), scaled down.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.config import Config, LossConfig, ModelConfig, PolicyConfig, RolloutConfig, TasksConfig, TrainConfig
from pipeline.engines import start_policy
from pipeline.evaluate import Actor, evaluate
from pipeline.fake import SoftmaxLearner
from pipeline.journal import Journal
from pipeline.memory import watch_memory
from pipeline.policy import VllmPolicy
from pipeline.prompt import ByteTemplate, Chat, load_chat
from pipeline.rollout import Rig
from pipeline.train import World, train
from pipeline.types import Batch, Completion, Sample
from sandbox import FakeBackend, FakeSandbox, Image, Limits, Pool, Sandbox, diff, open_backend
from tasks import Outcome, Task, Verdict, toy_suite

MODEL_SECONDS = (
    *(0.79, 0.83, 0.84, 1.09, 1.1, 1.12, 1.4, 1.48, 1.82, 2.02, 2.07, 2.39, 2.65, 2.79, 2.81, 2.86),
    *(2.93, 3.03, 3.14, 3.17, 3.24, 3.41, 3.47, 3.68, 3.84, 4.29, 4.77, 5.7, 6.13, 7.41, 11.05, 15.48),
)
TOOL_SECONDS = (0.0,) * 13 + (0.001, 0.003, 0.007, 0.01, 0.011, 0.013, 0.022, 0.028, 0.034, 0.038, 0.069, 0.071, 0.114, 0.123)
TOOL_SECONDS += (0.347, 0.499, 0.813, 1.136, 1.463)
STATEMENT = "The function returns the wrong thing when its input is empty. " * 16
THOUGHT = "I look at the file that holds the function and run it once with an empty input. " * 3
OBSERVATION = b"def f(values):\n    return values[0] if values else None\n" * 18
BASH = f"{THOUGHT}\n```bash\npython -c 'import m; print(m.f([]))'\n```"
SUBMIT = "```submit\n```"
SAME = {"weights": "the same"}
"""What learner and engine say of weights that never change."""
TURNS = 12
"""Of an episode where its length is fixed; the last submits."""


def pick(values: Sequence[float], *where: int) -> float:
    """One of the recorded values: the same for the same place in ours and in the peer's run."""
    return values[random.Random(hash(where)).randrange(len(values))]


async def sleep(seconds: float) -> tuple[float, float]:
    """What it took, and how much longer that was than asked (timers, and a busy event loop)."""
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    return took, took - seconds


class Recorded:
    """A policy that sleeps as long as a recorded turn, then says a fixed text; its version changes as a real one's."""

    def __init__(self, chat: Chat, scale: float, fixed: bool, publish: float = 0.0, bash: str = BASH) -> None:
        self.version, self.slept, self.late, self.now, self.most = 0, 0.0, 0.0, 0, 0
        self._chat, self._scale, self._fixed, self._publish = chat, scale, fixed, publish
        self._bash, self._ids = bash, {text: tuple(chat.write(text)) for text in (bash, SUBMIT)}

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """Where the length is not fixed, one turn in four submits."""
        version, seconds = self.version, pick(MODEL_SECONDS, seed) * self._scale
        self.now += 1
        self.most = max(self.most, self.now)
        took, late = await sleep(seconds)
        self.now, self.slept, self.late = self.now - 1, self.slept + took, self.late + late
        text = SUBMIT if not self._fixed and seed % 4 == 0 else self._bash
        ids = self._ids[text]
        return Completion(ids, (0.0,) * len(ids), text, version, True)

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """Zeros, as sampled."""
        return np.zeros(len(ids), np.float32)

    async def load(self, folder: Path, version: int) -> dict[str, str]:
        """The time of a publish."""
        await asyncio.sleep(self._publish)
        self.version = version
        return SAME

    async def close(self) -> None:
        """Nothing to stop."""


class Sleepy(SoftmaxLearner):
    """A learner that takes its time and agrees with the engine."""

    def __init__(self, seconds: float, weights: Path | None = None) -> None:
        super().__init__(Chat(ByteTemplate()), [SUBMIT])
        self._seconds, self._weights = seconds, weights

    def step(self, batch: Batch) -> dict[str, float]:
        """Sleep."""
        time.sleep(self._seconds)
        return {}

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Zeros."""
        return [np.zeros(len(sample.ids_T), np.float32) for sample in samples]

    def export(self, folder: Path, *, whole: bool = True) -> dict[str, str]:
        """Links to the served model, where there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self._weights.iterdir() if self._weights and not any(folder.iterdir()) else ():
            (folder / file.name).symlink_to(file.absolute())
        return SAME


class SleepingMachine(FakeSandbox):
    """Sleeps as long as a recorded command."""

    slept, late, scale = 0.0, 0.0, 0.0

    async def run(self, command: str, **options: object):  # type: ignore[no-untyped-def,override]
        """The same output each time."""
        seconds = pick(TOOL_SECONDS, len(self.commands)) * self.scale
        took, late = await sleep(seconds)
        SleepingMachine.slept, SleepingMachine.late = SleepingMachine.slept + took, SleepingMachine.late + late
        return await super().run(command)


class Machines(FakeBackend):
    """Sleeping machines."""

    async def start(self, image: Image, limits: Limits) -> Sandbox:
        """At once."""
        return SleepingMachine({"": OBSERVATION}, {"/testbed/m.py": b""})


def make_task(number: int) -> Task:
    """Nothing of it is looked at but its statement."""
    return Task(f"task-{number}", "r", "1", "0" * 40, STATEMENT, Image("none"), "", "", "", "parse_log_pytest", ("t",), ())


async def no_diff(sandbox: Sandbox, image: Image) -> str:
    """Every episode changed something."""
    return "changed"


def half_right(seconds: float) -> Callable[[Task, str], Awaitable[Verdict]]:
    """A grader that sleeps; outcomes are mixed."""
    draw = random.Random(0)

    async def grade(task: Task, patch: str) -> Verdict:
        await asyncio.sleep(seconds)
        return Verdict(task.instance_id, draw.choice((Outcome.RESOLVED, Outcome.UNRESOLVED)))

    return grade


def open_rig(chat: Chat, pool: Pool, rollout: RolloutConfig, grading: float = 0.0) -> Rig:
    """Episodes on sleeping machines."""
    return Rig(chat, pool, no_diff, half_right(grading), rollout, 1 << 20, 60.0, 3600.0)


# --- steps ---------------------------------------------------------------------------------------------------------


def make_config(steps: int, max_lag: int, rollout: RolloutConfig, **keys: object) -> Config:
    """A run that trains on everything."""
    train_keys = TrainConfig(steps=steps, max_lag=max_lag, save_every=10_000)
    return Config(tasks=TasksConfig(suite=Path("none")), rollout=rollout, train=train_keys, loss=LossConfig(old_logprobs="engine"), **keys)  # type: ignore[arg-type]


async def run_steps(steps: int, max_lag: int, scale: float, learner: float) -> tuple[float, float]:
    """Seconds of a step and of its learner's path, the first step left out (it has nothing to overlap with)."""
    rollout = RolloutConfig(tasks_per_step=8, group_size=8, max_turns=8)
    SleepingMachine.scale, chat = scale, Chat(ByteTemplate())
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        async with Pool(Machines(), Limits(), 16, ahead=1) as pool:
            policy = Recorded(chat, scale, fixed=False, publish=learner / 10)
            world = World(policy, Sleepy(learner), open_rig(chat, pool, rollout, scale), [make_task(one) for one in range(64)])
            await train(make_config(steps, max_lag, rollout), journal, world)
        rows = list(journal.steps().values())[1:]
    paths = [row.get("time/learn_seconds", 0.0) + row.get("time/publish_seconds", 0.0) for row in rows]
    return sum(row["time/step_seconds"] for row in rows) / len(rows), sum(paths) / len(rows)


async def measure_steps(quick: bool) -> dict[str, float]:
    """Learners as fast as the rollouts, half as fast and twice as fast."""
    steps, scale = (5, 0.02) if quick else (8, 0.05)
    figures: dict[str, float] = {}
    for lag in (1, 2):
        figures[f"rollout_path_s/lag{lag}"], _ = await run_steps(steps, lag, scale, 0.0)
    for share in (0.5, 1.0, 2.0):
        for lag in (0, 1, 2):
            path = figures[f"rollout_path_s/lag{max(lag, 1)}"]
            step, learner = await run_steps(steps, lag, scale, share * path)
            figures |= {f"step_s/learner{share}/lag{lag}": step, f"step_over_max/learner{share}/lag{lag}": step / max(path, learner)}
    return figures


# --- turns ---------------------------------------------------------------------------------------------------------


class TimedPool(Pool):
    """Knows how long episodes have waited for room, which is no one's overhead."""

    waited = 0.0

    def lease(self, image: Image, *, begun: Callable[[], None] | None = None):  # type: ignore[no-untyped-def,override]
        """As it is."""
        asked = time.monotonic()

        def begin() -> None:
            self.waited += time.monotonic() - asked
            if begun is not None:
                begun()

        return super().lease(image, begun=begin)


async def run_episodes(chat: Chat, at_once: int, count: int, scale: float) -> dict[str, float]:
    """`count` episodes, `at_once` at a time, through our batch runner, their record included."""
    rollout = RolloutConfig(max_turns=TURNS, max_new_tokens=4096)
    policy, SleepingMachine.scale, begin = Recorded(chat, scale, fixed=True), scale, time.process_time()
    SleepingMachine.slept = SleepingMachine.late = 0.0
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        async with TimedPool(Machines(), Limits(), at_once) as pool:
            tasks = [make_task(one) for one in range(count)]
            await evaluate(Actor("bench", lambda task: policy), tasks, open_rig(chat, pool, rollout), journal)
        assert all(row.turns == TURNS for row in journal.rows())
        wall = sum(row.seconds for row in journal.rows()) - pool.waited
    overhead = (wall - policy.slept - SleepingMachine.slept) / (count * TURNS)
    late, cpu = policy.late + SleepingMachine.late, time.process_time() - begin
    per_turn = {"overhead_ms": overhead, "late_ms": late / (count * TURNS), "cpu_ms": cpu / (count * TURNS)}
    return {name: 1e3 * seconds for name, seconds in per_turn.items()} | {"at_once": policy.most}


def measure_turns(quick: bool, mini: Path | None, model: Path | None) -> dict[str, float]:
    """Per turn, at two concurrencies; with the model's own tokenizer where there is a model."""
    chat, scale, figures = load_chat(model) if model else Chat(ByteTemplate()), 0.1 if quick else 0.3, dict[str, float]()
    for at_once in (8, 64):
        asyncio.run(run_episodes(chat, 8, 8, 0.01))  # imports and caches
        ours = asyncio.run(run_episodes(chat, at_once, 4 * at_once, scale))
        figures |= {f"{name}/{at_once}": value for name, value in ours.items() if name.endswith("_ms")}
        if mini:
            theirs = run_mini(mini, at_once, scale)
            figures |= {f"mini_{name}/{at_once}": value for name, value in theirs.items()}
            figures[f"overhead_over_mini/{at_once}"] = ours["overhead_ms"] / theirs["overhead_ms"]
    return figures


def run_mini(python: Path, at_once: int, scale: float) -> dict[str, float]:
    """The same episodes under mini-swe-agent's batch runner, in its own interpreter."""
    action = {"answer": BASH, "command": "python -c 'import m; print(m.f([]))'"}
    texts = {"statement": STATEMENT, "observation": OBSERVATION.decode(), **action}
    numbers = {"model": MODEL_SECONDS, "tool": TOOL_SECONDS, "at_once": at_once, "count": 4 * at_once, "scale": scale, "turns": TURNS}
    command = [python, Path(__file__).with_name("rollout_mini.py")]
    done = subprocess.run(command, input=json.dumps(texts | numbers), stdout=subprocess.PIPE, text=True, timeout=1800, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


async def measure_crowd(quick: bool, model: Path | None) -> dict[str, float]:
    """Memory where so many run at once; without a model's tokenizer each byte is a token, which is four times as many as usual."""
    chat, count = load_chat(model) if model else Chat(ByteTemplate()), 200 if quick else 2000
    with watch_memory() as peak:
        found = await run_episodes(chat, count, count, 0.3 if quick else 2.0)
    return {f"crowd_{name}": value for name, value in found.items()} | {"crowd_peak_gb": peak.bytes / 1e9}


# --- engine --------------------------------------------------------------------------------------------------------


async def measure_engine(quick: bool, model: Path) -> dict[str, float]:
    """Steps of real episodes with real publishes, asynchronous and not."""
    figures: dict[str, float] = {}
    for lag in (1, 0):
        idle, step = await run_engine(model, 4 if quick else 6, lag)
        figures |= {f"engine_idle/lag{lag}": idle, f"engine_step_s/lag{lag}": step}
    return figures


async def run_engine(model: Path, steps: int, max_lag: int) -> tuple[float, float]:
    """Share of the time without a running request while steps follow each other, and seconds of a step."""
    rollout = RolloutConfig(tasks_per_step=2, group_size=8, max_turns=4, max_new_tokens=64)
    policy_keys = PolicyConfig(memory_gb=1, max_requests=8, publish_tolerance=1e9)
    limits = Limits(memory_mb=256, disk_mb=64, command_seconds=30)
    config = make_config(steps, max_lag, rollout, policy=policy_keys, model=ModelConfig(path=model, context=2048))
    chat = load_chat(model)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "run") as journal:
        tasks = list(toy_suite(Path(folder) / "suite").tasks)
        policy = await start_policy(config, chat.template, Path(folder) / "vllm.log")

        async def load(weights: Path, version: int) -> dict[str, str]:
            await VllmPolicy.load(policy, weights, version)
            return SAME

        policy.load = load  # type: ignore[method-assign]
        try:
            async with Pool(open_backend("bubblewrap"), limits, 12, ahead=1, reuse=16) as pool:
                rig = replace(open_rig(chat, pool, rollout, 1.0), diff=diff, context=2048)
                watched = Watch(policy, journal, steps - max_lag)
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(watched.run())
                    await train(config, journal, World(policy, Sleepy(10.0, model), rig, tasks))
                    watching.cancel()
        finally:
            await policy.close()
        rows = list(journal.steps().values())[1:]
    return watched.idle / watched.seen, sum(row["time/step_seconds"] for row in rows) / len(rows)


class Watch:
    """Looks five times a second whether a request runs: from the first step's end to that of step `last` - 1, when no more are admitted."""

    def __init__(self, policy: VllmPolicy, journal: Journal, last: int) -> None:
        self.seen, self.idle = 0, 0
        self._policy, self._journal, self._last = policy, journal, last

    async def run(self) -> None:
        """Until it is cancelled."""
        async with httpx.AsyncClient(base_url=self._policy._client.base_url, trust_env=False) as client:
            while True:
                text = (await client.get("/metrics")).text
                lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
                if 0 < self._journal.next_step < self._last:
                    self.seen, self.idle = self.seen + 1, self.idle + (sum(float(line.split()[-1]) for line in lines) == 0)
                await asyncio.sleep(0.2)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute (without the engine)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--only", nargs="+", choices=("steps", "turns", "crowd", "engine"), help="these parts; engine needs --model")
    parser.add_argument("--mini", type=Path, metavar="PYTHON", help="an interpreter with mini-swe-agent")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a model folder, for the engine and its tokenizer (the quickstart makes one)"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # alarms about episodes that repeat themselves
    quick, model = options.quick, options.model
    parts = {
        "crowd": lambda: asyncio.run(measure_crowd(quick, model)),
        "turns": lambda: measure_turns(quick, options.mini, model),
        "steps": lambda: asyncio.run(measure_steps(quick)),
        **({"engine": lambda: asyncio.run(measure_engine(quick, model))} if model else {}),
    }
    figures: dict[str, float] = {"load_before": os.getloadavg()[0]}
    for name, measure in parts.items():
        if name in (options.only or parts):
            figures |= measure()
    for name, value in figures.items():
        print(f"{name:32} {value:10.3f}")
    if options.json:
        machine = {"cpus": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
        options.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
