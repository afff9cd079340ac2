"""`Store`: one SQLite file with a room's items, annotators, votes and settings.

A vote is a row that is never changed, and is on the disk before `vote` returns; an undo is a row more. Several threads
and several processes may use one file: who writes waits for the other, and readers wait for nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlhf_fast.annotate.answers import Said, SaidKind, rebuild_answers, write_answer, write_undo
from rlhf_fast.annotate.items import Annotator, Answered, Disagreement, Item, Kind, Progress, Task, Vote
from rlhf_fast.annotate.queue import (
    DEFAULTS,
    VOTES,
    assign,
    due_special,
    from_queue,
    item_of,
    left_for,
    open_lease,
    settings_of,
    task_of,
    vote_of,
)
from rlhf_fast.annotate.schema import Checkpointer, connect, prepare, savepoint, told, transaction
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import sync, temporary_of

LONGEST_NAME = 100
COMMITS_TO_CHECKPOINT = 500


class Store:
    """An open store; `Store.open` makes one. Methods raise `UsageError` for what cannot be done, and write nothing
    then. Times are unix seconds; `now` is for tests and leases.

    Any thread may call it. A method that writes waits for the disk by itself, but for those within `together`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._checkpointer: Checkpointer | None = None
        self._commits = 0
        self._db = self._connect()

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """The store in the file `path`; an older one is brought up to date. Only `create` makes a new one."""
        path = Path(path).expanduser()
        if path.is_dir() or (not path.exists() and not create):
            raise UsageError(f"{str(path)!r} is {'a folder' if path.is_dir() else 'not there'}; expected a store.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder of {str(path)!r}: {error}.") from error
        with told(path):
            store = cls(path)
        try:
            prepare(store._db, path)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """No other thread may use the store any more."""
        with self._lock:
            if self._checkpointer is not None:
                self._checkpointer.close()
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def backup(self, path: str | Path) -> Path:
        """A whole copy of the store, as it is at one moment, in the new file `path`; others may go on writing."""
        path = Path(path).expanduser()
        if path.exists():
            raise UsageError(f"{str(path)!r} is there already; a backup goes into a new file.")
        temporary = temporary_of(path)
        try:
            temporary.unlink(missing_ok=True)
            with told(temporary):
                copy = sqlite3.connect(temporary)
                try:
                    self._reader().backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
                finally:
                    copy.close()
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        except OSError as error:
            raise UsageError(f"cannot write the backup {str(path)!r}: {error}.") from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    # Settings and the audit log

    @property
    def settings(self) -> dict[str, Any]:
        """A copy; `update_settings` changes them."""
        return settings_of(self._reader())

    def update_settings(self, who: str = "command line", **values: Any) -> None:
        if unknown := values.keys() - DEFAULTS.keys():
            raise UsageError(f"unknown setting {sorted(unknown)[0]!r}; expected one of {', '.join(DEFAULTS)}.")
        _check_settings(DEFAULTS | values)
        with self._writing() as db:
            before = settings_of(db)
            changed = {name: value for name, value in values.items() if before[name] != value}
            for name, value in changed.items():
                db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))
            if changed:
                _audit(db, who, "settings", changed)

    def audit(self, who: str, what: str, detail: dict[str, Any] | None = None) -> None:
        """A row of who did what when, for good."""
        with self._writing() as db:
            _audit(db, who, what, detail or {})

    def audit_log(self, limit: int | None = None) -> list[dict[str, Any]]:
        """at, who, what, detail; the newest first."""
        rows = self._reader().execute(
            "SELECT at, who, what, detail FROM audit ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)
        )
        return [dict(row) | {"detail": json.loads(row["detail"])} for row in rows]

    # Items

    def add_items(self, items: Iterable[Item], who: str = "command line") -> int:
        """Append those that are not there yet, in their order; returns how many."""
        added = 0
        with self._writing() as db:
            position = db.execute("SELECT coalesce(max(position), 0) FROM items").fetchone()[0]
            for item in items:
                kind = "check" if item.answer is not None else "item"
                row = (item.id, position + 1, kind, _dump_item(item), time.time())
                done = db.execute(
                    "INSERT OR IGNORE INTO items (id, position, kind, content, added) VALUES (?, ?, ?, ?, ?)", row
                ).rowcount
                if done:
                    position, added = position + 1, added + 1
                    if kind == "item":
                        db.execute("INSERT INTO queue (item_id, position) VALUES (?, ?)", (item.id, position))
            if added:
                _audit(db, who, "items added", {"items": added})
        return added

    def items(self, kind: Kind | None = "item") -> list[Item]:
        """All of a kind, in the order in which they were added; None: of any."""
        rows = self._reader().execute("SELECT id FROM items WHERE ? IN (kind, '') ORDER BY position", (kind or "",))
        return [self.item(row["id"]) for row in rows.fetchall()]

    def item(self, item_id: str) -> Item:
        return item_of(self._reader(), item_id)

    def set_priorities(self, priorities: dict[str, float], who: str = "command line") -> None:
        """By item id: of items with as many votes, the highest are asked first (0 where nothing was set)."""
        with self._writing() as db:
            for item_id, value in priorities.items():
                if not db.execute("UPDATE queue SET priority = ? WHERE item_id = ?", (value, item_id)).rowcount:
                    raise UsageError(f"no item {item_id!r} waits in this store.")
            _audit(db, who, "priorities", {"items": len(priorities)})

    # Annotators

    def add_annotator(
        self, name: str, role: Literal["annotator", "admin"] = "annotator", who: str = "command line"
    ) -> str:
        """A new annotator's token, which is shown this once: only its SHA-256 is kept."""
        name = name.strip()
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise UsageError(f"an annotator's name is {name!r}; expected 1 to {LONGEST_NAME} printable characters.")
        if role not in ("annotator", "admin"):
            raise UsageError(f"the role is {role!r}; expected annotator or admin.")
        with self._writing() as db:
            if db.execute("SELECT 1 FROM annotators WHERE name = ?", (name,)).fetchone():
                raise UsageError(f"there is an annotator {name!r} already; choose another name, or a new token.")
            new = db.execute("INSERT INTO annotators (name, role, added) VALUES (?, ?, ?)", (name, role, time.time()))
            _audit(db, who, "annotator added", {"name": name, "role": role})
            return _new_token(db, new.lastrowid)

    def new_token(self, name: str, who: str = "command line") -> str:
        """Another token for an annotator who is there; the one before is worth nothing from now on."""
        with self._writing() as db:
            row = db.execute("SELECT id FROM annotators WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise UsageError(f"there is no annotator {name!r}.")
            _audit(db, who, "new token", {"name": name})
            return _new_token(db, row["id"])

    def revoke(self, name: str, who: str = "command line") -> None:
        """The annotator's token is worth nothing from now on; the votes stay."""
        with self._writing() as db:
            row = db.execute("SELECT id FROM annotators WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise UsageError(f"there is no annotator {name!r}.")
            db.execute("INSERT INTO tokens (annotator_id, at) VALUES (?, ?)", (row["id"], time.time()))
            _audit(db, who, "token revoked", {"name": name})

    def annotator_of(self, token: str) -> Annotator | None:
        """Whose token it is. Every valid one is compared, each in constant time."""
        given, found = _sha256(token), None
        rows = self._reader().execute(
            "SELECT a.id, a.name, a.role, t.sha256 FROM annotators a JOIN tokens t ON t.id = "
            "(SELECT max(id) FROM tokens WHERE annotator_id = a.id)"
        )
        for row in rows:
            if hmac.compare_digest(given, row["sha256"] or ""):
                found = Annotator(row["id"], row["name"], row["role"])
        return found

    def annotators(self) -> list[Annotator]:
        return [Annotator(*row) for row in self._reader().execute("SELECT id, name, role FROM annotators ORDER BY id")]

    # What an annotator does

    def next_item(self, annotator_id: int, now: float | None = None) -> Task | None:
        """The item that the annotator has open, else a new one, leased; None where nothing is left for now.

        Items that others have begun come first, then those of the highest priority, then in their order.
        """
        now = time.time() if now is None else now
        with self._writing(durable=False) as db:  # a lease that a power cut loses is taken again
            settings = settings_of(db)
            item_id = (
                open_lease(db, annotator_id, settings["overlap"], now)
                or due_special(db, annotator_id, settings)
                or from_queue(db, annotator_id, settings["overlap"], now)
            )
            if item_id is None:
                return None
            assign(db, annotator_id, item_id, settings["seed"], now)
            db.execute(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)",
                (annotator_id, item_id, now + settings["lease_seconds"]),
            )
            return task_of(db, annotator_id, item_id)

    def task(self, annotator_id: int, item_id: str) -> Task:
        """One that the annotator was given before, to see or to answer again."""
        return task_of(self._reader(), annotator_id, item_id)

    def vote(
        self, annotator_id: int, item_id: str, ranks: Sequence[int | None], *, all_bad: bool = False, note: str = "",
        seconds: float = 0.0, shown_order: Sequence[int] | None = None, request_id: str | None = None,
        now: float | None = None,
    ) -> int:  # fmt: skip
        """The number of the new row, which is on the disk when this returns. The annotator's latest vote on an item
        counts. A request_id that this annotator has used returns the row of then, and raises if it said something
        else. shown_order: what the page showed, if it is not the task's."""
        return self._say("vote", annotator_id, item_id, ranks, all_bad, note, seconds, shown_order, request_id, now)

    def skip(
        self, annotator_id: int, item_id: str, *, note: str = "", seconds: float = 0.0,
        shown_order: Sequence[int] | None = None, request_id: str | None = None, now: float | None = None,
    ) -> int:  # fmt: skip
        """As `vote`, with nothing said: the item is not given to this annotator again, and somebody else may."""
        return self._say("skip", annotator_id, item_id, None, False, note, seconds, shown_order, request_id, now)

    def adjudicate(
        self, admin_id: int, item_id: str, ranks: Sequence[int | None], *, all_bad: bool = False, note: str = "",
        seconds: float = 0.0, shown_order: Sequence[int] | None = None, request_id: str | None = None,
        now: float | None = None,
    ) -> int:  # fmt: skip
        """An administrator's decision, which stands for all votes on the item and closes it; the latest counts."""
        if not any(one.id == admin_id and one.role == "admin" for one in self.annotators()):
            raise UsageError(f"annotator {admin_id} is no administrator, who alone decide disagreements.")
        return self._say("adjudicate", admin_id, item_id, ranks, all_bad, note, seconds, shown_order, request_id, now)

    def _say(self, kind: SaidKind, annotator_id: int, item_id: str, ranks: Sequence[int | None] | None, all_bad: bool,
             note: str, seconds: float, shown_order: Sequence[int] | None, request_id: str | None,
             now: float | None) -> int:  # fmt: skip
        said = Said(
            kind, annotator_id, item_id, None if ranks is None else list(ranks), bool(all_bad), note, seconds,
            None if shown_order is None else list(shown_order), request_id, time.time() if now is None else now,
        )  # fmt: skip
        with self._writing() as db:
            return write_answer(db, said)

    def undo(self, annotator_id: int, *, request_id: str | None = None, now: float | None = None) -> str | None:
        """Take back the annotator's latest vote or skip that is not taken back; returns its item's id, which the
        annotator has open again unless an earlier vote on it counts now. None where there is none."""
        with self._writing() as db:
            now = time.time() if now is None else now
            return write_undo(db, annotator_id, request_id, now, settings_of(db)["lease_seconds"])

    def answered(self, annotator_id: int) -> list[Answered]:
        """What the annotator has voted on or skipped, the latest first; undone ones are not there."""
        rows = self._reader().execute(
            f"{VOTES} JOIN answers w ON w.event_id = e.id WHERE w.annotator_id = ? ORDER BY e.id DESC", (annotator_id,)
        )
        return [Answered(vote.item_id, vote.at, vote.summary) for vote in map(vote_of, rows)]

    def progress(self, annotator_id: int) -> Progress:
        db = self._reader()
        rows = db.execute(
            "SELECT e.kind, e.seconds FROM answers w JOIN events e ON e.id = w.event_id WHERE w.annotator_id = ?",
            (annotator_id,),
        ).fetchall()
        times = [row["seconds"] for row in rows if row["kind"] == "vote" and row["seconds"] > 0]
        pace = statistics.median(times) if times else None
        left = left_for(db, annotator_id)
        skipped = sum(row["kind"] == "skip" for row in rows)
        return Progress(
            len(rows) - skipped, skipped, len(rows) + left, pace, None if pace is None else round(pace * left, 1)
        )

    # What was said

    def current_votes(self, kind: Kind | None = "item") -> list[Vote]:
        """Each annotator's latest vote on each item of a kind that is not taken back, in order; None: of any kind."""
        rows = self._reader().execute(
            f"{VOTES} JOIN answers w ON w.event_id = e.id WHERE e.kind = 'vote' AND ? IN (i.kind, '') ORDER BY e.id",
            (kind or "",),
        )
        return list(map(vote_of, rows))

    def skips(self) -> dict[int, int]:
        """By annotator, how many items they have skipped and not answered since."""
        rows = self._reader().execute(
            "SELECT w.annotator_id, count(*) FROM answers w JOIN events e ON e.id = w.event_id WHERE e.kind = 'skip' "
            "GROUP BY w.annotator_id"
        )
        return {row[0]: row[1] for row in rows}

    def adjudications(self) -> dict[str, Vote]:
        """The latest decision on each item that has one, by item id."""
        rows = self._reader().execute(f"{VOTES} WHERE e.kind = 'adjudicate' ORDER BY e.id")
        return {vote.item_id: vote for vote in map(vote_of, rows)}

    def events(self) -> list[dict[str, Any]]:
        """Every row that was ever written of votes, skips, undos and decisions, as it is in the file."""
        return [dict(row) for row in self._reader().execute("SELECT * FROM events ORDER BY id")]

    def queue_of_disagreements(self) -> list[Disagreement]:
        """Items whose votes contradict each other and that nobody has decided, the most contradicted first."""
        from rlhf_fast.annotate.agreement import disagreement

        decided, by_item = self.adjudications(), dict[str, list[Vote]]()
        for vote in self.current_votes():
            by_item.setdefault(vote.item_id, []).append(vote)
        scored = [Disagreement(i, disagreement(votes), votes) for i, votes in by_item.items() if i not in decided]
        return sorted((one for one in scored if one.score > 0), key=lambda one: -one.score)

    def queue_lengths(self) -> dict[int, int]:
        """How many items have 0, 1, 2 ... votes that count; decided ones are left out."""
        rows = self._reader().execute("SELECT votes, items FROM tally WHERE closed = 0 AND items > 0 ORDER BY votes")
        return {row[0]: row[1] for row in rows}

    def rebuild(self) -> None:
        """Compute again, from the events, what only makes questions fast."""
        with self._writing() as db:
            rebuild_answers(db)

    # Connections

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path)
        with self._lock:
            self._connections.append(connection)
        return connection

    def _reader(self) -> sqlite3.Connection:
        """A connection of this thread's own, so that reading waits for no writer."""
        if not hasattr(self._local, "db"):
            with told(self.path):
                self._local.db = self._connect()
        return self._local.db

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._db.in_transaction:  # of `together`, in this thread, which has the lock
                with savepoint(self._db) as db:
                    yield db
            else:
                with transaction(self._db, self.path, durable=durable) as db:
                    yield db
                self._committed()

    def _committed(self) -> None:
        self._commits += 1
        if self._commits % COMMITS_TO_CHECKPOINT == 0:
            self._checkpointer = self._checkpointer or Checkpointer(self.path)
            self._checkpointer.due()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around calls of one thread: what they write is committed at once, when it ends. A call that raises writes
        nothing, and the others stand; where the commit fails, none do."""
        with self._writing():
            yield


def _check_settings(values: dict[str, Any]) -> None:
    shares, counts = ("repeats", "checks"), {"overlap": 1, "repeat_gap": 0}
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in shares and not (number and 0 <= value < 1):
            raise UsageError(f"{name} is {value!r}; expected a share from 0 to below 1.")
        if name in counts and not (number and value == int(value) and value >= counts[name]):
            raise UsageError(f"{name} is {value!r}; expected a whole number of {counts[name]} or more.")
        if name == "lease_seconds" and not (number and value > 0):
            raise UsageError(f"{name} is {value!r}; expected seconds above 0.")
        if name == "guidelines" and not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}; expected text.")


def _audit(db: sqlite3.Connection, who: str, what: str, detail: dict[str, Any]) -> None:
    db.execute(
        "INSERT INTO audit (at, who, what, detail) VALUES (?, ?, ?, ?)",
        (time.time(), who, what, json.dumps(detail, ensure_ascii=False)),
    )


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _new_token(db: sqlite3.Connection, annotator_id: int | None) -> str:
    token = secrets.token_urlsafe(32)
    db.execute(
        "INSERT INTO tokens (annotator_id, sha256, at) VALUES (?, ?, ?)", (annotator_id, _sha256(token), time.time())
    )
    return token


def _dump_item(item: Item) -> str:
    content = {name: getattr(item, name) for name in ("prompt", "responses", "sources", "meta", "tools", "answer")}
    return json.dumps(content, ensure_ascii=False, default=str)
