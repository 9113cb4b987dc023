"""Copies of the metrics for other tools: TensorBoard, wandb, trackio; each imported only when asked for. Knows no journal and no run.

The journal is the record, a sink is a copy of it. No step is in a copy twice, however often a run was killed: what lies in the run folder
(TensorBoard; wandb offline) is made anew at each start from the committed steps; where the copy lies elsewhere (wandb online, trackio)
it is asked how far it is, and goes on from there.
"""

import importlib.util
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

PROJECT = "greengrad"
"""The name under which wandb and trackio keep our runs."""

Write = Callable[[int, Mapping[str, float]], None]
"""A committed step and its metrics."""


class Sink(Protocol):
    """Where metrics go."""

    first_step: int
    """The first step that it does not have yet."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one step."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


def check_sinks(names: Sequence[str]) -> None:
    """ValueError for a sink whose package is not there; for the start of a command, before anything is written."""
    for name in names:
        if not _is_there(name):
            raise ValueError(f"telemetry.sinks: the package {name} is not installed: pip install {name}, or leave it out")


def _is_there(name: str) -> bool:
    """Not a mere folder of that name either, as wandb leaves them behind: it would be a namespace package, which has no origin."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that was blocked has no spec
        return False
    return spec is not None and spec.origin is not None


@contextmanager
def open_sinks(names: Sequence[str], run: Path, steps: Mapping[int, Mapping[str, float]]) -> Iterator[Write]:
    """The named sinks of a run folder, brought up to its committed steps; closed at the end of the block."""
    check_sinks(names)
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            sink = open_sink(name, run)
            stack.callback(sink.close)
            for step, metrics in steps.items():
                if step >= sink.first_step:
                    sink.write(step, metrics)
            sinks.append(sink)

        def write(step: int, metrics: Mapping[str, float]) -> None:
            for sink in sinks:
                sink.write(step, metrics)

        yield write


def open_sink(name: str, run: Path) -> Sink:
    """One of them by its name."""
    match name:
        case "tensorboard":
            return TensorBoard(run / "tensorboard")
        case "wandb":
            return Wandb(run)
        case "trackio":
            return Trackio(run)
        case _:
            raise ValueError(f"telemetry.sinks: {name} is none of tensorboard, wandb, trackio")


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN`; flushed after each step."""

    first_step = 0

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if folder.exists():
            shutil.rmtree(folder)
        self._writer = EventFileWriter(str(folder))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One event with all values."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """The last flush."""
        self._writer.close()


class Wandb:
    """A run of wandb under the identity of the run folder; WANDB_MODE, WANDB_API_KEY and so on are wandb's own."""

    def __init__(self, run: Path) -> None:
        import wandb

        name = identify(run)
        if os.environ.get("WANDB_MODE") == "offline":
            for old in (run / "wandb").glob(f"offline-run-*-{name}"):
                shutil.rmtree(old)
        self._run: Any = wandb.init(project=PROJECT, name=run.resolve().name, id=name, dir=str(run.resolve()), resume="allow")
        self.first_step = int(self._run.step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of its history; at once, not at the next step."""
        self._run.log(dict(metrics), step=step, commit=True)

    def close(self) -> None:
        """Wait until it is written."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its own folder (TRACKIO_DIR), named after the run folder and its identity."""

    def __init__(self, run: Path) -> None:
        import trackio

        name = f"{run.resolve().name}-{identify(run)}"
        self._run: Any = trackio.init(project=PROJECT, name=name, resume="allow", embed=False)
        last = trackio.SQLiteStorage.get_max_step_for_run(PROJECT, name)
        self.first_step = 0 if last is None else int(last) + 1

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of its table."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until it is written."""
        self._run.finish()


def identify(run: Path) -> str:
    """A random name for the run folder, the same at every start, wherever the folder is moved to."""
    path = run / "sink_id"
    if not path.exists():
        part = run / "sink_id.part"
        part.write_text(secrets.token_hex(4), encoding="ascii")
        os.replace(part, path)
    return path.read_text(encoding="ascii")
