"""What `greengrad train` does: fine-tuning, an expert's actions, a simulated user, or reinforcement; cli.py has parsed its words.

Each stage is refused before anything is written where its input will not do, and goes on with the same command where it was killed.
"""

import argparse
import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config, RftConfig, SimulatorConfig, SrlConfig
from .config_io import load_config
from .jobs import start_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from .train import World

    WorldOpener = Callable[[Config, Path], AbstractAsyncContextManager[World]]

log = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> int:
    """greengrad train CONFIG [--run DIR]: reinforcement, or fine-tuning where rft.episodes names demonstrations."""
    from .actor import choose_tasks
    from .grams import load_grams
    from .held_out import choose_held_out
    from .sinks import check_sinks

    config = load_config(arguments.config, arguments.overrides, Config)
    if config.model is None:
        raise ValueError(f"{arguments.config}: model.path is missing: training needs a model")
    if config.policy.api == "chat":
        raise ValueError(f"{arguments.config}: policy.api: chat has neither token ids nor log-probs: training needs policy.api: tokens")
    check_sinks(config.telemetry.sinks)
    load_grams(config.planning.grams)
    run = arguments.run or Path("runs") / config.name
    choose_tasks(config.tasks, config.tasks.split)  # a suite that will not do is refused before anything is written
    choose_held_out(config)
    check_stages(config, run, arguments.cluster)
    run_stages(config, run, arguments.cluster)
    if config.srl is not None:
        print(f"the expert's steps: greengrad show {run / 'srl'} and {run}/srl/report.html; their model: {run}/srl/model")
    if config.simulator is not None:
        print(f"the user's model, for user.server.path: {run}/model")
    print(f"done; greengrad show {run} and {run}/report.html show it")
    return 0


def run_stages(config: Config, run: Path, cluster: str | None) -> None:
    """Fine-tuning alone; or a simulated user; or an expert's steps, where there are any, and then reinforcement."""
    if config.rft is not None and config.rft.episodes is not None:
        start_run(run, config)
        _fine_tune(config, config.rft, config.rft.episodes, run)
        return
    if config.simulator is not None:
        start_run(run, config)
        _train_simulator(config, config.simulator, run)
        return
    open_world = _world_opener(cluster, config)
    start_run(run, config)
    if config.srl is not None:
        config = _learn_steps(config, config.srl, run / "srl")
    asyncio.run(_train(config, run, open_world))


def check_stages(config: Config, run: Path, cluster: str | None) -> None:
    """ValueError or FileNotFoundError where a stage cannot be run as it is asked for."""
    tuning = config.rft is not None and config.rft.episodes is not None
    if cluster is not None and (tuning or config.srl is not None):
        raise ValueError("--cluster: fine-tuning (rft.episodes) and srl run on one machine; leave it out, or make a run of its own of them")
    if cluster is not None and config.simulator is not None:
        raise ValueError("--cluster: simulator runs on one machine; leave it out")
    if config.rollout.demonstration is not None and not tuning:
        raise ValueError("rollout.demonstration is for `greengrad rollout`: reinforcement would train on a prompt that nobody sends")
    if config.rft is not None and config.rft.episodes is not None:
        from .stages.rft import load_demonstrations

        next(load_demonstrations(config, config.rft, config.rft.episodes))  # the first, or ValueError: there is none
    if config.srl is not None and not (run / "srl" / "model").is_dir():  # a stage that is over reads no expert
        from .actor import open_chat
        from .stages.srl import load_steps

        load_steps(config, config.srl, open_chat(config))
    if config.simulator is not None and not (run / "model").is_dir():
        from .stages.simulator import check_simulator

        check_simulator(config, config.simulator)


def _learn_steps(config: Config, srl: SrlConfig, run: Path) -> Config:
    """The stage before reinforcement; the configuration of what comes next, which starts from its model."""
    from .report import write_report
    from .stages.srl import run_srl, srl_config

    stage = srl_config(config, srl)
    start_run(run, stage)
    asyncio.run(run_srl(stage, srl, run))
    write_report(run)
    assert config.model is not None
    return config.model_copy(update={"model": config.model.model_copy(update={"path": run / "model"}), "srl": None})


def _train_simulator(config: Config, simulator: SimulatorConfig, run: Path) -> None:
    """Fine-tuning in RUN/tuned, where it is asked for, then reinforcement from its model."""
    from .report import write_report
    from .stages.simulator import simulator_config, train_simulator, tune_simulator

    assert config.model is not None
    start, tuned = config.model.path, run / "tuned"
    if config.rft is not None:
        start_run(tuned, config)
        tune_simulator(config, simulator, config.rft, tuned)
        write_report(tuned)
        start = tuned / "model"
    asyncio.run(train_simulator(simulator_config(config, start), simulator, run))
    write_report(run)


def _fine_tune(config: Config, rft: RftConfig, episodes: Path, run: Path) -> None:
    from .report import write_report
    from .stages.rft import tune_on

    tune_on(config, rft, episodes, run)
    write_report(run)


async def _train(config: Config, run: Path, open_world: "WorldOpener") -> None:
    from .journal import Journal
    from .recover import train_through
    from .report import write_report
    from .sinks import open_sinks

    with Journal(run) as journal:
        if journal.next_step < config.train.steps:
            await train_through(config, journal, partial(open_world, config, run))
        else:
            log.info("all %d steps are committed already", config.train.steps)
            with open_sinks(config.telemetry.sinks, run, journal.steps()):
                pass  # a run that was killed after its last step is copied to its end
    write_report(run)


def _world_opener(cluster: str | None, config: Config) -> "WorldOpener":
    """This machine, or the nodes of a Ray cluster, which is joined; ValueError where there is none, or it cannot do this."""
    if cluster is None:
        from .world import open_world

        return open_world
    from .cluster import check_cluster, connect, open_cluster_world

    check_cluster(config)
    connect(cluster)
    return open_cluster_world
