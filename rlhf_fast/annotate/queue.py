"""Which item an annotator gets next, and how rows of the store's file are read. Functions on a connection, which
`Store` calls within its transactions."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import time
from typing import Any

from rlhf_fast.annotate.items import Annotator, Item, Ranks, Task, Vote
from rlhf_fast.runtime.errors import UsageError

DEFAULTS: dict[str, Any] = {
    "guidelines": "", "overlap": 1, "lease_seconds": 900.0, "seed": 0, "repeats": 0.05, "repeat_gap": 5, "checks": 0.1,
}  # fmt: skip
"""Settings of a new store. guidelines: Markdown for annotators; overlap: votes that each item needs; lease_seconds: how
long an item is kept for who has it; repeats, checks: shares of tasks that are hidden repeats and check questions;
repeat_gap: answers between an item and its repeat."""

VOTES = (
    "SELECT e.*, a.name, a.role, i.kind AS item_kind, i.of FROM events e "
    "JOIN annotators a ON a.id = e.annotator_id JOIN items i ON i.id = e.item_id"
)


def settings_of(db: sqlite3.Connection) -> dict[str, Any]:
    return DEFAULTS | {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM settings")}


def item_of(db: sqlite3.Connection, item_id: str) -> Item:
    row = db.execute(
        "SELECT coalesce(i.content, o.content) AS content FROM items i LEFT JOIN items o ON o.id = i.of WHERE i.id = ?",
        (item_id,),
    ).fetchone()
    if row is None:
        raise UsageError(f"there is no item {item_id!r} in this store.")
    return Item(item_id, **json.loads(row["content"]))


def vote_of(row: sqlite3.Row) -> Vote:
    order = json.loads(row["shown_order"])
    ranks: Ranks = [None] * len(order) if row["ranks"] is None else json.loads(row["ranks"])
    return Vote(
        row["id"], row["kind"], row["item_id"], Annotator(row["annotator_id"], row["name"], row["role"]), ranks,
        bool(row["all_bad"]), row["note"], row["seconds"], order, row["at"], row["item_kind"],
        row["of"],
    )  # fmt: skip


# Tasks


def order_of(db: sqlite3.Connection, annotator_id: int, item_id: str) -> list[int]:
    row = db.execute(
        "SELECT shown_order FROM assignments WHERE annotator_id = ? AND item_id = ?", (annotator_id, item_id)
    ).fetchone()
    if row is None:
        raise UsageError(f"item {item_id!r} was not given to annotator {annotator_id}.")
    order: list[int] = json.loads(row["shown_order"])
    return order


def assign(db: sqlite3.Connection, annotator_id: int, item_id: str, seed: int, now: float) -> None:
    """The order in which this annotator sees the item, drawn once and kept."""
    order = list(range(len(item_of(db, item_id).responses)))
    random.Random(f"order {seed} {annotator_id} {item_id}").shuffle(order)
    db.execute(
        "INSERT OR IGNORE INTO assignments (annotator_id, item_id, shown_order, at) VALUES (?, ?, ?, ?)",
        (annotator_id, item_id, json.dumps(order), now),
    )


def task_of(db: sqlite3.Connection, annotator_id: int, item_id: str) -> Task:
    order = order_of(db, annotator_id, item_id)
    row = db.execute(
        f"{VOTES} JOIN answers w ON w.event_id = e.id WHERE w.annotator_id = ? AND w.item_id = ?",
        (annotator_id, item_id),
    ).fetchone()
    lease = db.execute(
        "SELECT until FROM leases WHERE annotator_id = ? AND item_id = ?", (annotator_id, item_id)
    ).fetchone()
    kind = db.execute("SELECT kind FROM items WHERE id = ?", (item_id,)).fetchone()["kind"]
    before = "" if row is None else " AND event_id < :event"
    done = db.execute(
        f"SELECT count(*) FROM answers WHERE annotator_id = :annotator{before}",
        {"annotator": annotator_id, "event": 0 if row is None else row["id"]},
    ).fetchone()[0]
    answered = db.execute("SELECT count(*) FROM answers WHERE annotator_id = ?", (annotator_id,)).fetchone()[0]
    open_special = int(row is None and kind != "item")  # it is not in the queue
    total = answered + left_for(db, annotator_id) + open_special
    return Task(
        item_of(db, item_id), order, lease["until"] if lease else 0.0, done + 1, max(total, done + 1),
        vote_of(row) if row is not None else None, kind,
    )  # fmt: skip


def left_for(db: sqlite3.Connection, annotator_id: int) -> int:
    """Items of the queue that this annotator may still get: with too few votes, and not answered by them."""
    overlap = settings_of(db)["overlap"]
    few = "SELECT coalesce(sum(items), 0) FROM tally WHERE closed = 0 AND votes < ?"
    own = (  # a CROSS JOIN, as SQLite would begin with the queue, which is longer
        "SELECT count(*) FROM answers w CROSS JOIN queue q ON q.item_id = w.item_id "
        "WHERE w.annotator_id = ? AND q.closed = 0 AND q.votes < ?"
    )
    waiting = db.execute(few, (overlap,)).fetchone()[0]
    return int(waiting - db.execute(own, (annotator_id, overlap)).fetchone()[0])


# Which item comes next

_OTHERS = (
    "(SELECT count(*) FROM leases o WHERE o.item_id = q.item_id AND o.annotator_id <> :annotator AND o.until > :now)"
)


def open_lease(db: sqlite3.Connection, annotator_id: int, overlap: int, now: float) -> str | None:
    """What the annotator was given and has not answered; not one that ran out and that enough others have taken."""
    row = db.execute(
        "SELECT l.item_id FROM leases l LEFT JOIN queue q ON q.item_id = l.item_id WHERE l.annotator_id = :annotator "
        f"AND (q.item_id IS NULL OR (q.closed = 0 AND q.votes + {_OTHERS} < :overlap)) "
        "ORDER BY l.until DESC LIMIT 1",
        {"annotator": annotator_id, "overlap": overlap, "now": now},
    ).fetchone()
    return None if row is None else str(row["item_id"])


def from_queue(db: sqlite3.Connection, annotator_id: int, overlap: int, now: float) -> str | None:
    for votes in range(overlap - 1, -1, -1):
        row = db.execute(
            "SELECT q.item_id FROM queue q WHERE q.closed = 0 AND q.votes = :votes AND NOT EXISTS "
            "(SELECT 1 FROM answers w WHERE w.annotator_id = :annotator AND w.item_id = q.item_id) "
            f"AND q.votes + {_OTHERS} < :overlap ORDER BY q.priority DESC, q.position LIMIT 1",
            {"annotator": annotator_id, "overlap": overlap, "votes": votes, "now": now},
        ).fetchone()
        if row is not None:
            return str(row["item_id"])
    return None


def due_special(db: sqlite3.Connection, annotator_id: int, settings: dict[str, Any]) -> str | None:
    """A repeat or a check question, where the draw for this annotator's next answer says so and there is one."""
    done = db.execute("SELECT count(*) FROM answers WHERE annotator_id = ?", (annotator_id,)).fetchone()[0]
    draw = random.Random(f"special {settings['seed']} {annotator_id} {done}")
    share = draw.random()
    if share < settings["repeats"]:
        return _repeat(db, annotator_id, settings["repeat_gap"], draw)
    if share < settings["repeats"] + settings["checks"]:
        return _check_question(db, annotator_id, draw)
    return None


def _repeat(db: sqlite3.Connection, annotator_id: int, gap: int, draw: random.Random) -> str | None:
    rows = db.execute(
        "SELECT w.item_id FROM answers w JOIN items i ON i.id = w.item_id AND i.kind = 'item' JOIN events e "
        "ON e.id = w.event_id AND e.kind = 'vote' WHERE w.annotator_id = :annotator AND w.item_id NOT IN "
        "(SELECT r.of FROM assignments a JOIN items r ON r.id = a.item_id WHERE a.annotator_id = :annotator "
        "AND r.of IS NOT NULL) "
        "ORDER BY w.event_id DESC LIMIT -1 OFFSET :gap",
        {"annotator": annotator_id, "gap": gap},
    ).fetchall()
    if not rows:
        return None
    of = draw.choice(rows)["item_id"]
    item_id = hashlib.blake2b(f"repeat {annotator_id} {of}".encode(), digest_size=6).hexdigest()
    db.execute(
        "INSERT INTO items (id, position, kind, of, added) SELECT ?, max(position) + 1, 'repeat', ?, ? FROM items",
        (item_id, of, time.time()),
    )
    return item_id


def _check_question(db: sqlite3.Connection, annotator_id: int, draw: random.Random) -> str | None:
    rows = db.execute(
        "SELECT id FROM items i WHERE kind = 'check' AND NOT EXISTS (SELECT 1 FROM answers w "
        "WHERE w.annotator_id = ? AND w.item_id = i.id) ORDER BY position", (annotator_id,)
    ).fetchall()  # fmt: skip
    return str(draw.choice(rows)["id"]) if rows else None
