"""The store's file: its tables, how an older one is brought up to date, and how it is opened.

What people said is append-only: triggers refuse any change of items, annotators, tokens, assignments, events and the
audit log. `answers`, `queue`, `tally` and `leases` only make questions fast; all but the leases follow from the events
(`Store.rebuild`).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_fast.runtime.errors import UsageError, disk_remedy

APPLICATION = 0x524C4846  # "RLHF", in the header of the file
BUSY_SECONDS = 10.0
logger = logging.getLogger(__name__)

_FIRST = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('item', 'repeat', 'check')),
    of TEXT REFERENCES items (id), content TEXT, added REAL NOT NULL,
    CHECK ((of IS NULL) = (content IS NOT NULL)), CHECK ((of IS NOT NULL) = (kind = 'repeat'))
);
CREATE INDEX items_kind ON items (kind);
CREATE TABLE annotators (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('annotator', 'admin')), added REAL NOT NULL
);
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT, annotator_id INTEGER NOT NULL REFERENCES annotators (id),
    sha256 TEXT UNIQUE, at REAL NOT NULL
);
CREATE TABLE assignments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, annotator_id INTEGER NOT NULL REFERENCES annotators (id),
    item_id TEXT NOT NULL REFERENCES items (id), shown_order TEXT NOT NULL, at REAL NOT NULL,
    UNIQUE (annotator_id, item_id)
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('vote', 'skip', 'undo', 'adjudicate')),
    annotator_id INTEGER NOT NULL REFERENCES annotators (id), item_id TEXT NOT NULL REFERENCES items (id),
    ranks TEXT, all_bad INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '', seconds REAL NOT NULL DEFAULT 0,
    shown_order TEXT, undoes INTEGER UNIQUE REFERENCES events (id), request_id TEXT, at REAL NOT NULL,
    UNIQUE (annotator_id, request_id), CHECK ((undoes IS NOT NULL) = (kind = 'undo'))
);
CREATE INDEX events_annotator ON events (annotator_id, item_id);
CREATE INDEX events_adjudicate ON events (item_id) WHERE kind = 'adjudicate';
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE answers (
    annotator_id INTEGER NOT NULL REFERENCES annotators (id), item_id TEXT NOT NULL REFERENCES items (id),
    event_id INTEGER NOT NULL REFERENCES events (id), PRIMARY KEY (annotator_id, item_id)
) WITHOUT ROWID;
CREATE INDEX answers_item ON answers (item_id);
CREATE TABLE queue (
    item_id TEXT PRIMARY KEY REFERENCES items (id), votes INTEGER NOT NULL DEFAULT 0, closed INTEGER NOT NULL DEFAULT 0,
    priority REAL NOT NULL DEFAULT 0, position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX queue_order ON queue (closed, votes, priority DESC, position);
CREATE TABLE tally (
    closed INTEGER NOT NULL, votes INTEGER NOT NULL, items INTEGER NOT NULL, PRIMARY KEY (closed, votes)
);
CREATE TRIGGER tally_insert AFTER INSERT ON queue BEGIN
    INSERT OR IGNORE INTO tally VALUES (new.closed, new.votes, 0);
    UPDATE tally SET items = items + 1 WHERE closed = new.closed AND votes = new.votes;
END;
CREATE TRIGGER tally_update AFTER UPDATE OF closed, votes ON queue BEGIN
    UPDATE tally SET items = items - 1 WHERE closed = old.closed AND votes = old.votes;
    INSERT OR IGNORE INTO tally VALUES (new.closed, new.votes, 0);
    UPDATE tally SET items = items + 1 WHERE closed = new.closed AND votes = new.votes;
END;
CREATE TABLE leases (
    annotator_id INTEGER NOT NULL REFERENCES annotators (id), item_id TEXT NOT NULL REFERENCES items (id),
    until REAL NOT NULL, PRIMARY KEY (annotator_id, item_id)
) WITHOUT ROWID;
CREATE INDEX leases_item ON leases (item_id, until);
"""
_APPEND_ONLY = "".join(
    f"""
CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;
"""
    for table in ("items", "annotators", "tokens", "assignments", "events", "audit")
    for verb in ("UPDATE", "DELETE")
)
MIGRATIONS: tuple[str, ...] = (_FIRST + _APPEND_ONLY,)
"""What leads from version i of the file to version i + 1. An entry is never changed once files have been made by it."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits for others, keeps a commit through a power cut and checks references; transactions are
    begun by hand, and any thread may use it, one at a time."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA wal_autocheckpoint = 10000")  # pages: where `Checkpointer` does not keep up
    return db


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, or bring an older one up to date, all or nothing. Raises `UsageError` for a file
    of something else, or of a newer version."""
    with transaction(db, path):
        version, application = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _HEADER)
        if application != APPLICATION and (application or version or _has_tables(db)):
            raise UsageError(f"{str(path)!r} is a database of something else; expected a store of votes.")
        if version > len(MIGRATIONS):
            raise UsageError(
                f"{str(path)!r} was written by a newer rlhf_fast (its version is {version}, expected at most "
                f"{len(MIGRATIONS)}). Use that one, or a backup from before."
            )
        for statements in MIGRATIONS[version:]:
            for statement in _split(statements):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute(f"PRAGMA application_id = {APPLICATION}")


_HEADER = ("user_version", "application_id")


def _has_tables(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None


def _split(statements: str) -> Iterator[str]:
    """One at a time: `executescript` would commit before it begins."""
    one = ""
    for line in statements.splitlines(keepends=True):
        one += line
        if sqlite3.complete_statement(one):
            yield one
            one = ""
    if one.strip():
        raise ValueError(f"an unfinished statement: {one!r}")


class Checkpointer:
    """A thread that moves what was committed from the log into the file now and then, so that no vote waits for it:
    SQLite would do so within a commit, every thousand pages."""

    def __init__(self, path: Path) -> None:
        self.path, self._due, self._ended = path, threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="annotate-checkpointer", daemon=True)
        self._thread.start()

    def due(self) -> None:
        self._due.set()

    def close(self) -> None:
        self._ended = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        db = connect(self.path)
        while self._due.wait() and not self._ended:
            self._due.clear()
            try:
                for _ in range(2):  # the second time what was written during the first, so that the log begins anew
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:  # nothing is lost: it stays in the log
                logger.warning("%s: what was committed stays in its log for now: %s", self.path, error)
        db.close()


@contextmanager
def transaction(db: sqlite3.Connection, path: Path, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
    """One that writes: all of it is on the disk when it ends, or none. durable=False: a power cut right after it may
    lose it, an end of the process does not; whatever is written durably later takes it along. Raises `UsageError` where
    others keep the file busy, or the disk refuses."""
    with told(path):
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


@contextmanager
def savepoint(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A part of a transaction that has begun: all of it, or none."""
    db.execute("SAVEPOINT part")
    try:
        yield db
    except BaseException:
        if db.in_transaction:  # a full disk ends it all
            db.execute("ROLLBACK TO part")
            db.execute("RELEASE part")
        raise
    db.execute("RELEASE part")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Around what uses the file: errors of SQLite that a user can do something about become `UsageError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:  # codes come with Python 3.11 only; the words are SQLite's own
        text, name = str(error), repr(str(path))
        if "is locked" in text:
            raise UsageError(
                f"{name} was busy for {BUSY_SECONDS:g} seconds: another process holds it. Nothing was written. Stop "
                "that process, or try again."
            ) from error
        if "not a database" in text or "malformed" in text:
            raise UsageError(f"{name} is not a whole SQLite file: {text}. Use a backup.") from error
        if any(words in text for words in _OF_THE_DISK):
            remedy = "Make room." if "is full" in text else disk_remedy(error)
            raise UsageError(f"cannot use {name}: {text}. {remedy}") from error
        raise


_OF_THE_DISK = ("is full", "disk I/O error", "readonly database", "unable to open")
