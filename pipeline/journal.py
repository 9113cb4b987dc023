"""The crash-safe record of a run: every episode as it finishes, every step, every phase; knows nothing of how they came to be.

One SQLite file (write-ahead log) in the run folder. Each call is one transaction: after a crash it is there whole or not at all.
An episode belongs to a step that is either committed or, after a crash, still open: then its finished groups can be taken up
again (`groups`) or thrown away (`discard_step`). metrics.jsonl is a copy of the steps, for people and plots.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .codec import decode_episode, encode_episode
from .types import Episode, Group

APPLICATION = 0x67726E67
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE episodes (
    episode_id TEXT PRIMARY KEY, group_id TEXT NOT NULL, instance_id TEXT NOT NULL, step INTEGER NOT NULL,
    stop TEXT NOT NULL, outcome TEXT, reward REAL, turns INTEGER NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX episodes_of_a_step ON episodes (step, group_id);
CREATE TABLE steps (step INTEGER PRIMARY KEY, metrics TEXT NOT NULL, finished REAL NOT NULL);
CREATE TABLE phases (name TEXT PRIMARY KEY, seconds REAL NOT NULL, notes TEXT NOT NULL, finished REAL NOT NULL);
"""


class JournalError(Exception):
    """The record cannot be written or read; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """What a list of episodes shows, without their tokens."""

    episode_id: str
    group_id: str
    instance_id: str
    step: int
    stop: str
    outcome: str | None
    reward: float | None
    turns: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A finished part of a job (the quickstart has several)."""

    name: str
    seconds: float
    notes: dict[str, float]


class Journal:
    """The record of one run folder. One writer at a time; readers (`readonly=True`) do not wait for it."""

    def __init__(self, run: Path, readonly: bool = False) -> None:
        self.run = run
        self.path = run / "journal.sqlite"
        if readonly:
            if not self.path.is_file():
                raise FileNotFoundError(f"{run}: no journal.sqlite here; is this a run folder?")
            self._lock = -1
        else:
            run.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(run / "journal.lock")
        try:
            with self._told():
                self._db = _connect(self.path, readonly)
        except JournalError:
            self._release()
            raise

    def record_episode(self, episode: Episode, step: int) -> None:
        """Keep a finished episode, before anything else is done with it."""
        outcome = episode.verdict.outcome.value if episode.verdict else None
        row = (
            *(episode.episode_id, episode.group_id, episode.instance_id, step, episode.stop.value),
            *(outcome, episode.reward, len(episode.turns), episode.seconds, time.time(), encode_episode(episode)),
        )
        with self._told(), self._db:
            self._db.execute(f"INSERT INTO episodes VALUES ({','.join('?' * len(row))})", row)

    def episodes(self, step: int | None = None) -> Iterator[Episode]:
        """The episodes of a step, or of the whole run, in the order in which they finished."""
        where, values = ("", ()) if step is None else ("WHERE step = ?", (step,))
        with self._told():
            for name, body in self._db.execute(f"SELECT episode_id, body FROM episodes {where} ORDER BY finished, rowid", values):
                yield self._decode(name, body)

    def episode(self, episode_id: str) -> Episode:
        """One episode by its id; ValueError when there is none."""
        with self._told():
            found = self._db.execute("SELECT body FROM episodes WHERE episode_id = ?", (episode_id,)).fetchone()
        if found is None:
            raise ValueError(f"{self.path}: no episode {episode_id}; `greengrad show {self.run}` lists them")
        return self._decode(episode_id, found[0])

    def rows(self) -> list[EpisodeRow]:
        """All episodes in the order in which they finished, without their tokens."""
        columns = "episode_id, group_id, instance_id, step, stop, outcome, reward, turns, seconds"
        with self._told():
            return [EpisodeRow(*row) for row in self._db.execute(f"SELECT {columns} FROM episodes ORDER BY finished, rowid")]

    def groups(self, step: int) -> tuple[Group, ...]:
        """The episodes of a step by group, in the order of their ids, as `collect` gave them: a batch made again is the same batch."""
        members: dict[str, list[Episode]] = {}
        for episode in sorted(self.episodes(step), key=lambda one: one.episode_id):
            members.setdefault(episode.group_id, []).append(episode)
        return tuple(Group(name, found[0].instance_id, step, tuple(found)) for name, found in members.items())

    def discard_step(self, step: int) -> int:
        """Throw away the episodes of a step that was never committed; returns how many."""
        if step in self.steps():
            raise ValueError(f"{self.path}: step {step} is committed and stays")
        with self._told(), self._db:
            return self._db.execute("DELETE FROM episodes WHERE step = ?", (step,)).rowcount

    def forget_infra(self, step: int) -> int:
        """Throw away the episodes of an open step that have no verdict, so that they are attempted again; returns how many."""
        if step in self.steps():
            raise ValueError(f"{self.path}: step {step} is committed and stays")
        with self._told(), self._db:
            return self._db.execute("DELETE FROM episodes WHERE step = ? AND outcome = 'infra'", (step,)).rowcount

    def commit_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """The step is done: its weights are saved, a resumed run goes on after it."""
        with self._told(), self._db:
            self._db.execute("INSERT INTO steps VALUES (?, ?, ?)", (step, json.dumps(dict(metrics)), time.time()))
        self._write_metrics()

    def steps(self) -> dict[int, dict[str, float]]:
        """Committed steps -> metrics."""
        with self._told():
            return {step: json.loads(text) for step, text in self._db.execute("SELECT step, metrics FROM steps ORDER BY step")}

    @property
    def next_step(self) -> int:
        """The first step that is not committed."""
        return max(self.steps(), default=-1) + 1

    def mark_phase(self, name: str, seconds: float, notes: Mapping[str, float] | None = None) -> None:
        """A phase is done and need not be repeated."""
        with self._told(), self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO phases VALUES (?, ?, ?, ?)", (name, seconds, json.dumps(dict(notes or {})), time.time())
            )

    def phase_done(self, name: str) -> bool:
        """Was it marked?"""
        return any(phase.name == name for phase in self.phases())

    def phases(self) -> list[Phase]:
        """Finished phases in the order in which they finished."""
        with self._told():
            found = self._db.execute("SELECT name, seconds, notes FROM phases ORDER BY finished, rowid")
            return [Phase(name, seconds, json.loads(notes)) for name, seconds, notes in found]

    def close(self) -> None:
        """Let another process write; safe to call twice."""
        self._db.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _decode(self, episode_id: str, body: bytes) -> Episode:
        try:
            return decode_episode(body)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: episode {episode_id} cannot be read: {error}") from None

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write_metrics(self) -> None:
        lines = [json.dumps({"step": step, **metrics}) for step, metrics in self.steps().items()]
        part = self.run / "metrics.jsonl.part"
        try:
            part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            os.replace(part, self.run / "metrics.jsonl")
        except OSError as error:
            raise JournalError(f"{part}: cannot be written: {error.strerror}; the step itself is recorded") from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's failures as one line that names the file."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise JournalError(f"{self.path}: recorded before ({error})") from error
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{self.path}: {_advice(str(error))}") from error


def _advice(message: str) -> str:
    if "not a database" in message or "malformed" in message or message.startswith("foreign"):
        return f"not a readable journal of greengrad ({message}); move it away or choose another run folder"
    if "full" in message or "disk I/O" in message or "unable to open" in message:
        return f"cannot be written ({message}); nothing of this transaction was kept; make room and run the same command again"
    return message


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    """Open or make the file; sqlite3.DatabaseError for one that is not ours."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}", uri=True, timeout=30)
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and (application, version) != (APPLICATION, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"foreign file: application {application:#x}, version {version}")
        if not tables:
            if readonly:
                raise sqlite3.DatabaseError("foreign file: it has no tables")
            _create(db)
        return db
    except sqlite3.DatabaseError:
        db.close()
        raise


def _create(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(f"BEGIN; {SCHEMA} PRAGMA application_id={APPLICATION}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")


def _take_lock(path: Path) -> int:
    """A record lock on the file: it ends with this process, however that ends, and children do not inherit it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 32).decode("ascii", "replace").strip()
        os.close(handle)
        raise JournalError(f"{path.parent}: another process (pid {owner}) is writing to this run; wait for it or stop it") from None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(handle)
        raise JournalError(f"{path}: {_advice(f'disk full or read-only: {error.strerror}')}") from error
    return handle
