"""The file of a journal: its tables, their versions, the lock of its one writer, SQLite's words in plain ones; knows no episodes.

Version 1 had episodes, steps and phases. Version 2 adds what the ledger needs: what was issued, the turns of unfinished episodes,
the batch of each step, what became of each episode, and events. A writer adds the tables to an older file, in one transaction;
a reader, who may not write, sees them as temporary ones.
"""

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Literal

APPLICATION = 0x67726E67
SCHEMA_VERSION = 2
EPISODES = """
CREATE TABLE episodes (
    episode_id TEXT PRIMARY KEY, group_id TEXT NOT NULL, instance_id TEXT NOT NULL, step INTEGER NOT NULL,
    stop TEXT NOT NULL, outcome TEXT, reward REAL, turns INTEGER NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX episodes_of_a_step ON episodes (step, group_id);
CREATE TABLE steps (step INTEGER PRIMARY KEY, metrics TEXT NOT NULL, finished REAL NOT NULL);
CREATE TABLE phases (name TEXT PRIMARY KEY, seconds REAL NOT NULL, notes TEXT NOT NULL, finished REAL NOT NULL);
"""
LEDGER = """
CREATE {temp} TABLE issued (
    episode_id TEXT PRIMARY KEY, group_id TEXT NOT NULL, instance_id TEXT NOT NULL, step INTEGER NOT NULL, issued REAL NOT NULL);
CREATE {temp} TABLE turns (
    episode_id TEXT NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, recorded REAL NOT NULL, PRIMARY KEY (episode_id, number));
CREATE {temp} TABLE batches (step INTEGER PRIMARY KEY, digest TEXT NOT NULL, made REAL NOT NULL);
CREATE {temp} TABLE fates (episode_id TEXT PRIMARY KEY, step INTEGER NOT NULL, fate TEXT NOT NULL);
CREATE {temp} TABLE events (
    event INTEGER PRIMARY KEY, episode_id TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL, happened REAL NOT NULL);
INSERT INTO issued SELECT episode_id, group_id, instance_id, step, finished FROM episodes;
"""


class JournalError(Exception):
    """The record cannot be written or read; the message is one line that says what to do."""


def advice(message: str) -> str:
    """What to do about a failure of SQLite."""
    if "not a database" in message or "malformed" in message or message.startswith("foreign"):
        return f"not a readable journal of greengrad ({message}); move it away or choose another run folder"
    if "full" in message or "disk I/O" in message or "unable to open" in message:
        return f"cannot be written ({message}); nothing of this transaction was kept; make room and run the same command again"
    return message


def connect(path: Path, readonly: bool) -> sqlite3.Connection:
    """Open or make the file; sqlite3.DatabaseError for one that is not ours."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}", uri=True, timeout=30)
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and (application != APPLICATION or not 1 <= version <= SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"foreign file: application {application:#x}, version {version}")
        if not tables:
            if readonly:
                raise sqlite3.DatabaseError("foreign file: it has no tables")
            db.execute("PRAGMA journal_mode=WAL")
            _add(db, f"{EPISODES} PRAGMA application_id={APPLICATION};{LEDGER.format(temp='')}")
        elif version < SCHEMA_VERSION and readonly:
            db.executescript(LEDGER.format(temp="TEMP"))
        elif version < SCHEMA_VERSION:
            _add(db, LEDGER.format(temp=""))
        set_sync(db, "NORMAL")
        return db
    except sqlite3.DatabaseError:
        db.close()
        raise


def set_sync(db: sqlite3.Connection, level: Literal["NORMAL", "FULL"]) -> None:
    """NORMAL: a transaction is in the file when its call returns, so a kill loses nothing, and on the disk some time later; a power failure
    may take the last ones, whole. FULL: it is on the disk, and with it all before it; that takes milliseconds in which no episode goes on.
    """
    db.execute(f"PRAGMA synchronous={level}")


def _add(db: sqlite3.Connection, tables: str) -> None:
    try:
        db.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    except sqlite3.DatabaseError:
        db.rollback()
        raise


def take_lock(path: Path) -> int:
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
        raise JournalError(f"{path}: {advice(f'disk full or read-only: {error.strerror}')}") from error
    return handle
