"""A crew of processes that carry out the same commands side by side; knows nothing of models or of what a command means.

Every wait is bounded. A rank that dies takes the crew with it and becomes a RankError with the end of its log: its own traceback,
or the signal that killed it. When the owner dies, the ranks end themselves.
"""

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

LOG_TAIL = 4000
"""Characters of a dead rank's log that go into the error."""


class RankError(Exception):
    """A rank died, or gave no answer in time."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A rank's place in the crew, and on its machine."""

    rank: int
    ranks: int
    rendezvous: str
    """Where the ranks meet: torch.distributed's init_method. On one machine a file that does not exist yet: no port to race for."""
    local_rank: int
    """Its number on its machine, and its GPU."""
    local_ranks: int
    interface: str = "lo"
    """The network interface between the ranks."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place, its connection to the owner, its log."""

    spot: Spot
    pipe: Connection
    log: Path

    @property
    def rank(self) -> int:
        """From 0."""
        return self.spot.rank


class Crew(Protocol):
    """Ranks that obey: processes of this machine (Ranks), or actors of a cluster."""

    def answers(self, question: str, seconds: float) -> list[Any]:
        """One object from each rank; RankError after `seconds` or when one has died."""
        ...

    def call(self, commands: Sequence[object], seconds: float) -> list[Any]:
        """One command to each rank, and all answers."""
        ...

    def close(self) -> None:
        """Let them go; safe to call twice."""
        ...


class Ranks:
    """`count` processes that run `main(seat, setup)`, which answers each object from its pipe with one object."""

    def __init__(self, main: Callable[[Seat, Any], None], setup: object, count: int, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(prefix="greengrad-ranks-")
        rendezvous = f"file://{self._scratch.name}/rendezvous"
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._seats: list[Seat] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            seat = Seat(Spot(rank, count, rendezvous, rank, count), theirs, logs / f"rank{rank}.log")
            process = context.Process(target=_enter, args=(main, seat, setup), daemon=True, name=f"rank {rank}")
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._seats.append(seat)
            self._processes.append(process)

    def call(self, commands: Sequence[object], seconds: float) -> list[Any]:
        """Send one command to each rank and wait for all answers; RankError after `seconds` or when a rank dies."""
        for rank, (pipe, command) in enumerate(zip(self._pipes, commands, strict=True)):
            try:
                pipe.send(command)
            except OSError:
                self._fail(rank)
        return self.answers(type(commands[0]).__name__, seconds)

    def answers(self, question: str, seconds: float) -> list[Any]:
        """One object from each rank."""
        deadline = time.monotonic() + seconds
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pipes):
            open_pipes = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            sentinels = {process.sentinel: rank for rank, process in enumerate(self._processes)}
            ready = wait([*open_pipes, *sentinels], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise RankError(f"no answer to {question} within {seconds:.0f} s from ranks {sorted(open_pipes.values())}")
            for pipe, rank in open_pipes.items():
                if pipe in ready:
                    try:
                        answers[rank] = pipe.recv()
                    except (EOFError, OSError):
                        self._fail(rank)
            for sentinel, rank in sentinels.items():
                if sentinel in ready and rank not in answers:
                    self._fail(rank)
        return [answers[rank] for rank in sorted(answers)]

    def close(self, seconds: float = 30.0) -> None:
        """Let the ranks go: closed pipes tell them to end; what has not ended in time is killed. Safe to call twice."""
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End every rank now."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(10)
        self._scratch.cleanup()

    def _fail(self, rank: int) -> None:
        """Name the rank that died first, with the end of its log."""
        self._processes[rank].join(10)
        dead = [r for r, process in enumerate(self._processes) if process.exitcode not in (None, 0)] or [rank]
        self.kill()
        raise RankError("\n".join(_obituary(self._seats[r], self._processes[r].exitcode) for r in dead))


def _obituary(seat: Seat, exitcode: int | None) -> str:
    cause = f"exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        cause = f"killed by {signal.Signals(-exitcode).name}" + (" (out of memory?)" if exitcode == -signal.SIGKILL else "")
    return describe_death(seat.spot, cause, seat.log)


def describe_death(spot: Spot, cause: str, log: Path) -> str:
    """For the error message, with the end of the log."""
    tail = log.read_text(errors="replace")[-LOG_TAIL:] if log.exists() else ""
    return f"rank {spot.rank} of {spot.ranks} died: {cause}; the end of {log}:\n{tail}"


def _enter(main: Callable[[Seat, Any], None], seat: Seat, setup: object) -> None:
    """What a rank does first: send output (a traceback too) to its log, ignore Ctrl-C (the owner decides), watch its owner."""
    write_to(seat.log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    threading.Thread(target=_end_with_owner, daemon=True).start()
    main(seat, setup)


def write_to(file: Path) -> None:
    """Everything that this process prints, from C too."""
    with file.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    if owner is not None:
        owner.join()
        os._exit(1)
