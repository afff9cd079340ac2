"""How what annotators say becomes rows of the store's file, each a function on a connection within a transaction.

write_answer      a vote, a skip or a decision
write_undo        takes back the latest vote or skip of an annotator
rebuild_answers   what follows from the events, computed again
"""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import dataclass
from typing import Literal

from rlhf_fast.annotate.items import Ranks, check_ranks
from rlhf_fast.annotate.queue import item_of, order_of
from rlhf_fast.runtime.errors import UsageError

LONGEST_NOTE = 10_000
SaidKind = Literal["vote", "skip", "adjudicate"]
_STANDS = "e.kind IN ('vote', 'skip') AND NOT EXISTS (SELECT 1 FROM events u WHERE u.undoes = e.id)"


@dataclass(frozen=True)
class Said:
    """One answer to an item, as it came. ranks: None of a skip. shown_order: None is the task's own."""

    kind: SaidKind
    annotator_id: int
    item_id: str
    ranks: Ranks | None
    all_bad: bool
    note: str
    seconds: float
    shown_order: list[int] | None
    request_id: str | None
    at: float

    def __post_init__(self) -> None:
        if len(self.note) > LONGEST_NOTE:
            raise UsageError(f"a note has {len(self.note)} characters; expected at most {LONGEST_NOTE}.")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise UsageError(f"seconds is {self.seconds!r}; expected 0 or more.")


def write_answer(db: sqlite3.Connection, said: Said) -> int:
    """The number of its row; of the earlier one where this request has been written. Raises `UsageError` where it
    does not fit the item, or the annotator was never given it."""
    ranks = None if said.ranks is None else json.dumps(said.ranks)
    if said.request_id is not None and (earlier := _event_of(db, said.annotator_id, said.request_id)):
        same = (earlier["kind"], earlier["item_id"], earlier["ranks"], bool(earlier["all_bad"]))
        if same != (said.kind, said.item_id, ranks, said.all_bad):
            raise UsageError(f"request {said.request_id!r} was for something else; expected a new request_id.")
        return int(earlier["id"])
    item = item_of(db, said.item_id)
    if said.ranks is not None:
        check_ranks(said.ranks, len(item.responses), all_bad=said.all_bad)
    decision = said.kind == "adjudicate"
    order = list(range(len(item.responses))) if decision else order_of(db, said.annotator_id, said.item_id)
    if said.shown_order is not None:
        if sorted(said.shown_order) != sorted(order):
            raise UsageError(f"shown_order is {said.shown_order}; expected each of {sorted(order)} once.")
        order = said.shown_order
    event = db.execute(
        "INSERT INTO events (kind, annotator_id, item_id, ranks, all_bad, note, seconds, shown_order, request_id, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            said.kind, said.annotator_id, said.item_id, ranks, said.all_bad, said.note, said.seconds,
            json.dumps(order), said.request_id, said.at,
        ),
    ).lastrowid  # fmt: skip
    assert event is not None
    if decision:
        db.execute("UPDATE queue SET closed = 1 WHERE item_id = ?", (said.item_id,))
    else:
        _set_answer(db, said.annotator_id, said.item_id, event)
    return event


def write_undo(
    db: sqlite3.Connection, annotator_id: int, request_id: str | None, now: float, lease_seconds: float
) -> str | None:
    """The item whose latest vote or skip by this annotator is taken back; None where nothing is left to take back."""
    if request_id is not None and (earlier := _event_of(db, annotator_id, request_id)):
        if earlier["kind"] != "undo":
            raise UsageError(f"request {request_id!r} was for something else; expected a new request_id.")
        return str(earlier["item_id"])
    last = db.execute(
        f"SELECT id, item_id FROM events e WHERE annotator_id = ? AND {_STANDS} ORDER BY id DESC LIMIT 1",
        (annotator_id,),
    ).fetchone()
    if last is None:
        return None
    item_id = str(last["item_id"])
    db.execute(
        "INSERT INTO events (kind, annotator_id, item_id, undoes, request_id, at) VALUES ('undo', ?, ?, ?, ?, ?)",
        (annotator_id, item_id, last["id"], request_id, now),
    )
    before = db.execute(
        f"SELECT max(id) FROM events e WHERE annotator_id = ? AND item_id = ? AND {_STANDS}", (annotator_id, item_id)
    ).fetchone()[0]
    _set_answer(db, annotator_id, item_id, before)
    if before is None:
        db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (annotator_id, item_id, now + lease_seconds))
    return item_id


def rebuild_answers(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM answers")
    db.execute(
        "INSERT INTO answers SELECT annotator_id, item_id, max(id) FROM events e "
        f"WHERE {_STANDS} GROUP BY annotator_id, item_id"
    )
    db.execute(
        "UPDATE queue SET votes = (SELECT count(*) FROM answers w JOIN events e ON e.id = w.event_id "
        "WHERE w.item_id = queue.item_id AND e.kind = 'vote'), closed = "
        "EXISTS (SELECT 1 FROM events e WHERE e.item_id = queue.item_id AND e.kind = 'adjudicate')"
    )


def _event_of(db: sqlite3.Connection, annotator_id: int, request_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM events WHERE annotator_id = ? AND request_id = ?", (annotator_id, request_id)
    ).fetchone()
    return row


def _set_answer(db: sqlite3.Connection, annotator_id: int, item_id: str, event_id: int | None) -> None:
    """Which of the annotator's events on the item counts now; None: none."""
    before = _votes(db, annotator_id, item_id)
    if event_id is None:
        db.execute("DELETE FROM answers WHERE annotator_id = ? AND item_id = ?", (annotator_id, item_id))
    else:
        db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (annotator_id, item_id, event_id))
        db.execute("DELETE FROM leases WHERE annotator_id = ? AND item_id = ?", (annotator_id, item_id))
    change = _votes(db, annotator_id, item_id) - before
    if change:
        db.execute("UPDATE queue SET votes = votes + ? WHERE item_id = ?", (change, item_id))


def _votes(db: sqlite3.Connection, annotator_id: int, item_id: str) -> int:
    """1 where the annotator's answer to the item is a vote, 0 where it is a skip or there is none."""
    row = db.execute(
        "SELECT e.kind FROM answers w JOIN events e ON e.id = w.event_id WHERE w.annotator_id = ? AND w.item_id = ?",
        (annotator_id, item_id),
    ).fetchone()
    return int(row is not None and row["kind"] == "vote")
