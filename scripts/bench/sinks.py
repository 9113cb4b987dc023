#!/usr/bin/env python3
"""Kills a run that copies its metrics to TensorBoard, wandb (offline) or trackio, again and again, and reads every step back.

    python scripts/bench/sinks.py tensorboard|wandb|trackio [--steps 60] [--kills 5] [--seed 0]

A child commits steps to a file (as the journal would) and copies each through pipeline/sinks.py; it is killed with SIGKILL at a random
moment and started again. At the end the copy must hold each step once, in order, with its value; exit code 1 where it does not.
Needs the sink's package and numpy, nothing else of ours: wandb and trackio are not in our constraints, a virtual environment will do.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.sinks import PROJECT, identify, open_sinks

BLOCK = 32768
Rows = list[tuple[int, float]]


def main() -> int:
    """Parent: kill, restart, read back. Child: commit and copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sink", choices=["tensorboard", "wandb", "trackio"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        copy_steps(arguments.child, arguments.sink, arguments.steps)
        return 0
    with tempfile.TemporaryDirectory(prefix="greengrad-sinks-") as folder:
        return torment(Path(folder), arguments)


def copy_steps(run: Path, sink: str, steps: int) -> None:
    """The rest of the steps: each committed, then copied."""
    journal = run / "steps.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    with open_sinks([sink], run, {step: {"a/b": value} for step, value in done}) as copy, journal.open("a") as file:
        for step in range(len(done), steps):
            file.write(json.dumps([step, step / 2]) + "\n")
            file.flush()
            copy(step, {"a/b": step / 2})
            time.sleep(0.05)


def torment(run: Path, arguments: argparse.Namespace) -> int:
    """Kill at random moments, let the last child end, compare."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(run / "trackio")}
    chance, command = random.Random(arguments.seed), [sys.executable, __file__, arguments.sink, "--steps", str(arguments.steps)]
    killed = 0
    for turn in range(arguments.kills + 1):
        child = subprocess.Popen([*command, "--child", str(run)], stdout=subprocess.DEVNULL)
        try:
            child.wait(None if turn == arguments.kills else chance.uniform(0.5, 3.0))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            killed += 1
        if child.wait() not in (0, -signal.SIGKILL):
            print(f"{arguments.sink}: the child failed with {child.returncode}")
            return 1
    found = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio}[arguments.sink](run)
    wanted = [(step, step / 2) for step in range(arguments.steps)]
    print(
        f"{arguments.sink}: killed {killed} times, {len(found)} rows, {len({step for step, _ in found})} different of {len(wanted)} steps"
    )
    print("each step once, in order" if found == wanted else f"WRONG: {found}")
    return 0 if found == wanted else 1


def read_tensorboard(run: Path) -> Rows:
    """Of all event files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for file in sorted((run / "tensorboard").iterdir()) for event in EventFileLoader(str(file)).Load()]
    return [(event.step, value.tensor.float_val[0]) for event in events for value in event.summary.value]


def read_trackio(run: Path) -> Rows:
    """Of the table of the run."""
    import trackio

    logs = trackio.SQLiteStorage.get_logs(PROJECT, f"{run.resolve().name}-{identify(run)}")
    return [(row["step"], row["a/b"]) for row in logs]


def read_wandb(run: Path) -> Rows:
    """Of all offline files: protobuf records in LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows: Rows = []
    for file in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in read_log(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                rows.append((record.history.step.num, values["a/b"]))
    return rows


def read_log(text: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log: blocks of 32 KiB with pieces of (crc 4, length 2, type 1: whole, first, middle, last)."""
    at, parts = 7, b""
    while at + 7 <= len(text):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(text[at + 4 : at + 6], "little"), text[at + 6]
        parts += text[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


if __name__ == "__main__":
    sys.exit(main())
