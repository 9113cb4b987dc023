"""The crash-safe record of a run: what was issued, every turn and episode, every batch and step; knows nothing of how they came to be.

One SQLite file (write-ahead log) in the run folder. Each call is one transaction: after a crash it is there whole or not at all. A kill
loses none, a power failure none before the last committed step.
An episode belongs to a step that is either committed or, after a crash, still open: then its finished groups can be taken up
again (`groups`), the turns of an unfinished one as well (`turns`), or thrown away (`discard_step`). What is thrown away leaves an
event. metrics.jsonl is a copy of the steps, for people and plots.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .codec import decode_episode, decode_turns, encode_episode, encode_turn
from .journal_file import JournalError as JournalError
from .journal_file import advice, connect, set_sync, take_lock
from .types import Episode, Group, Turn


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


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """The ledger as it was written, not yet checked."""

    whole: str
    """SQLite's own word on the file: "ok"."""
    issued: dict[str, tuple[str, str, int]]
    """Episode id -> group, instance, step, in the order in which they were issued."""
    open_turns: dict[str, int]
    """Unfinished episodes that have turns -> how many."""
    fates: dict[str, tuple[int, str]]
    """Episode id -> step, and "trained" or why not."""
    events: list[tuple[str, str, str]]
    """Episode, what, detail: "resumed", "cut", "forgotten"."""


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
            self._lock = take_lock(run / "journal.lock")
        try:
            with self._told():
                self._db = connect(self.path, readonly)
            if not readonly and self.steps():
                self._write_metrics()  # a kill may have come between a step and its copy
        except JournalError:
            self._release()
            raise

    def issue(self, episode_id: str, group_id: str, instance_id: str, step: int) -> None:
        """An episode begins, or goes on where an earlier process left it."""
        with self._told(), self._db:
            row = (episode_id, group_id, instance_id, step, time.time())
            self._db.execute("INSERT OR IGNORE INTO issued VALUES (?, ?, ?, ?, ?)", row)
            (turns,) = self._db.execute("SELECT count(*) FROM turns WHERE episode_id = ?", (episode_id,)).fetchone()
            if turns:
                self._note(episode_id, "resumed", f"after turn {turns}")

    def record_turn(self, episode_id: str, turns: Sequence[Turn]) -> None:
        """Keep the last of an episode's turns so far, before the next one begins."""
        body = encode_turn(turns[-1], turns[-2] if len(turns) > 1 else None)
        with self._told(), self._db:
            self._db.execute("INSERT INTO turns VALUES (?, ?, ?, ?)", (episode_id, len(turns) - 1, body, time.time()))

    def turns(self, episode_id: str) -> tuple[Turn, ...]:
        """The recorded turns of an episode that has not finished."""
        query = "SELECT body FROM turns WHERE episode_id = ? ORDER BY number"
        with self._told():
            bodies = [body for (body,) in self._db.execute(query, (episode_id,))]
        try:
            return decode_turns(bodies)
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{self.path}: a turn of {episode_id} cannot be read: {error}") from None

    def cut(self, episode_id: str, keep: int, why: str) -> None:
        """Throw away the turns of an unfinished episode after the first `keep`, and note why."""
        with self._told(), self._db:
            self._db.execute("DELETE FROM turns WHERE episode_id = ? AND number >= ?", (episode_id, keep))
            self._note(episode_id, "cut", why)

    async def kept(self, episode_id: str) -> None:
        """At once: what is recorded is committed."""

    def record_episode(self, episode: Episode, step: int) -> None:
        """Keep a finished episode, before anything else is done with it."""
        outcome = episode.verdict.outcome.value if episode.verdict else None
        row = (
            *(episode.episode_id, episode.group_id, episode.instance_id, step, episode.stop.value),
            *(outcome, episode.reward, len(episode.turns), episode.seconds, time.time(), encode_episode(episode)),
        )
        with self._told(), self._db:
            self._db.execute(f"INSERT INTO episodes VALUES ({','.join('?' * len(row))})", row)
            self._db.execute("DELETE FROM turns WHERE episode_id = ?", (episode.episode_id,))

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
        return self._forget(step, "1", "the open step was thrown away")

    def forget_infra(self, step: int) -> int:
        """Throw away the episodes of an open step that have no verdict, so that they are attempted again; returns how many."""
        return self._forget(step, "outcome = 'infra'", "no verdict (infrastructure): attempted again")

    def forget_episode(self, episode: Episode, step: int, why: str) -> None:
        """Throw away one episode of an open step, so that it is attempted again."""
        self._forget(step, "episode_id = ?", why, episode.episode_id)

    def _forget(self, step: int, where: str, why: str, *values: str) -> int:
        if step in self.steps():
            raise ValueError(f"{self.path}: step {step} is committed and stays")
        with self._told(), self._db:
            query = f"DELETE FROM episodes WHERE step = ? AND {where} RETURNING episode_id"
            gone = self._db.execute(query, (step, *values)).fetchall()
            for (episode_id,) in gone:
                self._note(episode_id, "forgotten", why)
        return len(gone)

    def record_batch(self, step: int, digest: str, fates: Mapping[str, str]) -> None:
        """What a step trains on, before it does: a digest of the samples, and what becomes of each episode.

        JournalError where the step's batch was recorded before and was another one: it would be trained on something else.
        """
        with self._told():
            found = self._db.execute("SELECT digest FROM batches WHERE step = ?", (step,)).fetchone()
        if found is not None and found[0] != digest:
            raise JournalError(f"{self.path}: the batch of step {step} is not the recorded one; was the code or the configuration changed?")
        if found is None:
            with self._told(), self._db:
                self._db.execute("INSERT INTO batches VALUES (?, ?, ?)", (step, digest, time.time()))
                self._db.executemany("INSERT INTO fates VALUES (?, ?, ?)", [(name, step, fate) for name, fate in fates.items()])

    def batch(self, step: int) -> str | None:
        """The digest of a step's batch; None where none was recorded."""
        with self._told():
            found = self._db.execute("SELECT digest FROM batches WHERE step = ?", (step,)).fetchone()
        return str(found[0]) if found else None

    def commit_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """The step is done: its weights are saved, a resumed run goes on after it."""
        with self._told():
            set_sync(self._db, "FULL")
            with self._db:
                self._db.execute("INSERT INTO steps VALUES (?, ?, ?)", (step, json.dumps(dict(metrics)), time.time()))
            set_sync(self._db, "NORMAL")
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

    def ledger(self) -> "LedgerRows":
        """Everything that is counted rather than read (pipeline/ledger.py)."""
        with self._told():
            (whole,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            return LedgerRows(
                whole=str(whole),
                issued={row[0]: (row[1], row[2], row[3]) for row in self._db.execute("SELECT * FROM issued ORDER BY issued, rowid")},
                open_turns=dict(self._db.execute("SELECT episode_id, count(*) FROM turns GROUP BY episode_id")),
                fates={row[0]: (row[1], row[2]) for row in self._db.execute("SELECT * FROM fates")},
                events=list(self._db.execute("SELECT episode_id, what, detail FROM events ORDER BY event")),
            )

    def close(self) -> None:
        """Let another process write; safe to call twice."""
        self._db.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _note(self, episode_id: str, what: str, detail: str) -> None:
        """An event, inside the caller's transaction."""
        row = (episode_id, what, detail, time.time())
        self._db.execute("INSERT INTO events (episode_id, what, detail, happened) VALUES (?, ?, ?, ?)", row)

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
            raise JournalError(f"{self.path}: {advice(str(error))}") from error
