"""The store of votes: who gets which item, what counts, and that nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from rlhf_fast import UsageError
from rlhf_fast.annotate import schema
from rlhf_fast.annotate.items import make_item
from rlhf_fast.annotate.store import Store

ROOT = Path(__file__).parents[2]


def item(name: str, responses: int = 2, **more):
    return make_item(name, [f"{name} answer {i}" for i in range(responses)], **more)


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "votes.db", create=True)
    opened.update_settings(repeats=0.0, checks=0.0)
    yield opened
    opened.close()


def people(store: Store, *names: str) -> list[int]:
    return [store.annotator_of(store.add_annotator(name)).id for name in names]


# Tokens


def test_a_token_is_told_once_and_only_its_digest_is_kept(store):
    token = store.add_annotator("ada")
    assert store.annotator_of(token).name == "ada"
    assert store.annotator_of(token + "x") is None and store.annotator_of("") is None
    kept = "\n".join(store._db.iterdump())
    assert token not in kept and "ada" in kept


def test_a_new_token_ends_the_one_before_and_a_revoked_one_lets_nobody_in(store):
    first = store.add_annotator("ada")
    second = store.new_token("ada")
    assert store.annotator_of(first) is None and store.annotator_of(second).name == "ada"
    store.revoke("ada")
    assert store.annotator_of(second) is None and [one.name for one in store.annotators()] == ["ada"]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[2J", "n" * 101])
def test_a_name_that_cannot_be_shown_is_refused(store, name):
    with pytest.raises(UsageError, match="name"):
        store.add_annotator(name)


# Which item comes next


def test_items_come_in_their_order_and_an_open_one_again_until_it_is_answered(store):
    store.add_items([item("a"), item("b")])
    (ada,) = people(store, "ada")
    first = store.next_item(ada, now=0.0)
    assert first.item.prompt == "a" and (first.position, first.total) == (1, 2)
    again = store.next_item(ada, now=1.0)
    assert (again.item.id, again.order) == (first.item.id, first.order)
    store.vote(ada, first.item.id, [1, 2])
    second = store.next_item(ada, now=2.0)
    assert second.item.prompt == "b" and (second.position, second.total) == (2, 2)
    store.skip(ada, second.item.id)
    assert store.next_item(ada, now=3.0) is None


def test_two_people_never_hold_the_same_item_unless_it_needs_two_votes(store):
    store.add_items([item("a"), item("b")])
    ada, bob, eve = people(store, "ada", "bob", "eve")
    assert [store.next_item(one, now=0.0).item.prompt for one in (ada, bob)] == ["a", "b"]
    assert store.next_item(eve, now=0.0) is None
    store.update_settings(overlap=2)
    assert store.next_item(eve, now=0.0).item.prompt == "a"


def test_a_lease_that_runs_out_lets_somebody_else_in_and_a_late_vote_still_counts(store):
    store.add_items([item("a")])
    store.update_settings(lease_seconds=10.0)
    ada, bob = people(store, "ada", "bob")
    a = store.next_item(ada, now=0.0)
    assert a.lease_until == 10.0 and store.next_item(bob, now=9.0) is None
    assert store.next_item(bob, now=11.0).item.id == a.item.id
    assert store.next_item(ada, now=12.0) is None  # bob has it, and one vote is enough
    store.vote(ada, a.item.id, [1, 2], now=13.0)
    store.vote(bob, a.item.id, [2, 1], now=14.0)
    assert [vote.annotator.name for vote in store.current_votes()] == ["ada", "bob"]


def test_a_skipped_item_goes_to_somebody_else(store):
    store.add_items([item("a")])
    ada, bob = people(store, "ada", "bob")
    store.skip(ada, store.next_item(ada).item.id, note="not my field")
    assert store.next_item(ada) is None and store.next_item(bob).item.prompt == "a"
    assert store.skips() == {ada: 1}


def test_items_that_were_begun_come_first_then_those_of_the_highest_priority(store):
    items = [item(name) for name in "abcd"]
    store.add_items(items)
    store.update_settings(overlap=2)
    ada, bob = people(store, "ada", "bob")
    store.set_priorities({items[2].id: 0.5, items[3].id: 0.9})
    d = store.next_item(ada)
    assert d.item.prompt == "d"
    store.vote(ada, d.item.id, [1, 2])
    store.set_priorities({items[3].id: -1.0})
    seen = []
    while task := store.next_item(bob):
        seen.append(task.item.prompt)
        store.vote(bob, task.item.id, [1, 2])
    assert seen == ["d", "c", "a", "b"]


def test_the_order_of_responses_is_random_for_each_person_and_item_seeded_and_kept(store, tmp_path):
    store.add_items([item(str(i), 3) for i in range(40)])
    store.update_settings(overlap=2)
    ada, bob = people(store, "ada", "bob")
    orders = {}
    for one in (ada, bob):
        while task := store.next_item(one):
            orders[one, task.item.prompt] = task.order
            store.vote(one, task.item.id, [1, 2, 3])
    assert {tuple(order) for order in orders.values()} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    }  # fmt: skip
    same = sum(orders[ada, str(i)] == orders[bob, str(i)] for i in range(40))
    assert same < 20  # 40 / 6 by chance
    for vote in store.current_votes():
        assert vote.shown_order == orders[vote.annotator.id, store.item(vote.item_id).prompt]
    assert store.task(ada, store.items()[7].id).order == orders[ada, "7"]

    other = Store.open(tmp_path / "other.db", create=True)
    other.add_items([item(str(i), 3) for i in range(40)])
    people(other, "ada")
    assert other.next_item(ada).order == orders[ada, "0"]  # the same seed
    other.close()


def test_hidden_repeats_come_later_once_each_under_another_id_and_do_not_count(store):
    store.add_items([item(str(i)) for i in range(30)])
    store.update_settings(repeats=0.5, repeat_gap=3)
    (ada,) = people(store, "ada")
    asked = []
    while task := store.next_item(ada):
        asked.append(task)
        store.vote(ada, task.item.id, [1, 2])
    repeats = [at for at, task in enumerate(asked) if task.kind == "repeat"]
    assert 5 < len(repeats) <= 30 and len(asked) == 30 + len(repeats)
    prompts = [task.item.prompt for task in asked]
    for at in repeats:
        first = prompts.index(prompts[at])
        assert at - first > 3 and asked[first].kind == "item" and asked[first].item.id != asked[at].item.id
    assert len({prompts[at] for at in repeats}) == len(repeats)
    assert len(store.current_votes()) == 30 and len(store.current_votes("repeat")) == len(repeats)
    assert {vote.of for vote in store.current_votes("repeat")} <= {one.id for one in store.items()}


def test_check_questions_are_mixed_in_once_for_each_person_and_tell_nobody(store):
    store.add_items([item(str(i)) for i in range(40)])
    store.add_items([item(f"check {i}", answer=[1, 2]) for i in range(3)])
    store.update_settings(checks=0.4)
    (ada,) = people(store, "ada")
    asked = []
    while task := store.next_item(ada):
        asked.append(task)
        assert "check" not in repr(task).replace("check 0", "").replace("check 1", "").replace("check 2", "")
        store.vote(ada, task.item.id, [1, 2])
    checks = [task.item.prompt for task in asked if task.kind == "check"]
    assert sorted(checks) == ["check 0", "check 1", "check 2"]
    assert len(store.current_votes()) == 40 and len(store.current_votes("check")) == 3


# What counts


def test_the_latest_vote_counts_and_undo_goes_back_step_by_step(store):
    a, b = item("a", 3), item("b")
    store.add_items([a, b])
    (ada,) = people(store, "ada")
    for one, ranks in ((a, [1, 2, 3]), (b, [2, 1])):
        assert store.next_item(ada).item.id == one.id
        store.vote(ada, one.id, ranks)
    store.vote(ada, a.id, [1, 1, None], note="changed my mind")
    assert {vote.item_id: vote.ranks for vote in store.current_votes()} == {a.id: [1, 1, None], b.id: [2, 1]}
    assert store.task(ada, a.id).vote.note == "changed my mind"
    assert store.undo(ada) == a.id and store.task(ada, a.id).vote.ranks == [1, 2, 3]
    assert store.next_item(ada) is None  # both are still answered
    assert store.undo(ada) == b.id and store.next_item(ada).item.id == b.id
    assert [one.item_id for one in store.answered(ada)] == [a.id]
    assert store.undo(ada) == a.id and store.undo(ada) is None and store.current_votes() == []
    assert [event["kind"] for event in store.events()] == ["vote"] * 3 + ["undo"] * 3


def test_the_same_request_writes_one_row_and_another_content_under_it_is_refused(store):
    a = item("a")
    store.add_items([a])
    (ada,) = people(store, "ada")
    store.next_item(ada)
    first = store.vote(ada, a.id, [1, 2], request_id="r1")
    assert store.vote(ada, a.id, [1, 2], request_id="r1") == first and len(store.events()) == 1
    with pytest.raises(UsageError, match="something else"):
        store.vote(ada, a.id, [2, 1], request_id="r1")
    assert store.undo(ada, request_id="r2") == a.id and store.undo(ada, request_id="r2") == a.id
    assert len(store.events()) == 2
    with pytest.raises(UsageError, match="something else"):
        store.undo(ada, request_id="r1")


@pytest.mark.parametrize(
    ("ranks", "more", "said"),
    [
        ([1], {}, "for 2 responses"),
        ([1, 3], {}, "from 1"),
        ([0, 1], {}, "from 1"),
        ([1, 2.0], {}, "whole numbers"),
        ([True, 2], {}, "whole numbers"),
        ([1, None], {}, "1 of 2 responses are ranked"),
        ([None, None], {}, "0 of 2"),
        ([1, 2], {"seconds": -1.0}, "seconds"),
        ([1, 2], {"seconds": float("nan")}, "seconds"),
        ([1, 2], {"note": "n" * 10_001}, "note"),
        ([1, 2], {"shown_order": [0, 0]}, "shown_order"),
    ],
)
def test_a_vote_that_does_not_fit_is_refused_and_writes_nothing(store, ranks, more, said):
    a = item("a")
    store.add_items([a])
    (ada,) = people(store, "ada")
    store.next_item(ada)
    with pytest.raises(UsageError, match=said):
        store.vote(ada, a.id, ranks, **more)
    assert store.events() == []


def test_nobody_votes_on_what_they_were_not_given(store):
    a = item("a")
    store.add_items([a])
    (ada,) = people(store, "ada")
    with pytest.raises(UsageError, match="not given"):
        store.vote(ada, a.id, [1, 2])
    with pytest.raises(UsageError, match="no item"):
        store.vote(ada, "nothing", [1, 2])
    with pytest.raises(UsageError, match="not given"):
        store.task(ada, a.id)


def test_all_bad_needs_no_ranks_and_summaries_are_in_the_numbers_that_were_seen(store):
    a = item("a", 3)
    store.add_items([a])
    (ada,) = people(store, "ada")
    store.next_item(ada)
    store.vote(ada, a.id, [2, 1, 1], shown_order=[2, 0, 1])
    assert store.answered(ada)[0].summary == "1 = 3 > 2"
    store.vote(ada, a.id, [None, None, None], all_bad=True)
    assert store.answered(ada)[0].summary == "all bad"
    store.vote(ada, a.id, [None, 2, 1], all_bad=True, shown_order=[0, 1, 2])
    assert store.answered(ada)[0].summary == "3 > 2, all bad"


def test_a_decision_closes_an_item_and_only_an_administrator_takes_it(store):
    a = item("a")
    store.add_items([a])
    store.update_settings(overlap=3)
    ada, bob, eve = people(store, "ada", "bob", "eve")
    boss = store.annotator_of(store.add_annotator("boss", "admin")).id
    for one, ranks in ((ada, [1, 2]), (bob, [2, 1])):
        store.next_item(one)
        store.vote(one, a.id, ranks)
    (found,) = store.queue_of_disagreements()
    assert (found.item_id, found.score, len(found.votes)) == (a.id, 1.0, 2)
    with pytest.raises(UsageError, match="administrator"):
        store.adjudicate(ada, a.id, [1, 2])
    store.adjudicate(boss, a.id, [2, 1], note="the second is right")
    assert store.queue_of_disagreements() == [] and store.adjudications()[a.id].ranks == [2, 1]
    assert store.next_item(eve) is None


def test_progress_tells_pace_and_time_left(store):
    store.add_items([item(str(i)) for i in range(5)])
    (ada,) = people(store, "ada")
    assert store.progress(ada) == (0, 0, 5, None, None)
    for seconds in (2.0, 4.0, 9.0):
        store.vote(ada, store.next_item(ada).item.id, [1, 2], seconds=seconds)
    store.skip(ada, store.next_item(ada).item.id)
    assert store.progress(ada) == (3, 1, 5, 4.0, 4.0)


# The file


def test_what_was_said_cannot_be_changed_or_deleted(store):
    a = item("a")
    store.add_items([a])
    (ada,) = people(store, "ada")
    store.next_item(ada)
    store.vote(ada, a.id, [1, 2])
    for table in ("items", "annotators", "tokens", "assignments", "events", "audit"):
        assert store._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] > 0
        for verb in (f"DELETE FROM {table}", f"UPDATE {table} SET id = id"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                store._db.execute(verb)


def test_what_only_makes_questions_fast_follows_from_the_events(store):
    """After anything that people can do, in any order, `rebuild` changes nothing."""
    store.add_items([item(str(i)) for i in range(8)])
    store.update_settings(overlap=2, repeats=0.2, repeat_gap=1)
    ids = people(store, "ada", "bob", "eve")
    boss = store.annotator_of(store.add_annotator("boss", "admin")).id
    draw = random.Random(3)

    def derived():
        tables = ("answers", "queue", "tally WHERE items > 0")
        return [[tuple(row) for row in store._db.execute(f"SELECT * FROM {table}")] for table in tables]

    for _ in range(300):
        one, what = draw.choice(ids), draw.random()
        if what < 0.45 and (task := store.next_item(one)):
            store.vote(one, task.item.id, draw.choice([[1, 2], [2, 1], [1, 1]]))
        elif what < 0.6 and (task := store.next_item(one)):
            store.skip(one, task.item.id)
        elif what < 0.75 and (done := store.answered(one)):
            store.vote(one, draw.choice(done).item_id, [1, 2])
        elif what < 0.97:
            store.undo(one)
        else:
            store.adjudicate(boss, draw.choice(store.items()).id, [1, 2])
    before = derived()
    assert any(before[0]) and any(row[1] for row in before[1])
    store.rebuild()
    assert derived() == before


def test_together_is_one_commit_and_a_call_that_fails_takes_back_only_its_own(store):
    store.add_items([item("a"), item("b")])
    (ada,) = people(store, "ada")
    reader = Store.open(store.path)
    with store.together():
        store.vote(ada, store.next_item(ada).item.id, [1, 2])
        with pytest.raises(UsageError):
            store.vote(ada, store.next_item(ada).item.id, [1, 9])
        assert reader.events() == []
    assert len(reader.events()) == 1 and store.next_item(ada).item.prompt == "b"
    with pytest.raises(RuntimeError), store.together():
        store.vote(ada, store.next_item(ada).item.id, [1, 2])
        raise RuntimeError
    assert len(reader.events()) == 1
    reader.close()


def steps_of_a_vote(path: Path, items: int, answers: int, repeats: float) -> int:
    """Hundreds of SQLite's steps for a next item and a vote on it, after so many answers."""
    store = Store.open(path, create=True)
    store.update_settings(overlap=3)
    store.add_items([item(str(i)) for i in range(items)])
    (ada,) = people(store, "ada")
    with store.together():
        for _ in range(answers):
            store.vote(ada, store.next_item(ada).item.id, [1, 2])
    store.update_settings(repeats=repeats)
    steps = [0]
    store._db.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 100)
    for _ in range(5):
        store.vote(ada, store.next_item(ada).item.id, [1, 2])
    store.close()
    return steps[0]


def test_the_work_of_a_vote_does_not_grow_with_the_items_and_at_most_in_proportion_to_the_answers(tmp_path):
    few, many = (steps_of_a_vote(tmp_path / f"{n}.db", n, 50, 0.0) for n in (200, 4000))
    assert many < 1.5 * few
    some, more = (steps_of_a_vote(tmp_path / f"repeats {n}.db", 600, n, 0.99) for n in (100, 400))
    assert more < 6 * some


def test_settings_are_kept_checked_and_audited(store):
    store.update_settings("boss", overlap=3, guidelines="Be kind.")
    again = Store.open(store.path)
    assert (again.settings["overlap"], again.settings["guidelines"]) == (3, "Be kind.")
    again.close()
    newest = store.audit_log(1)[0]
    assert (newest["who"], newest["what"]) == ("boss", "settings")
    assert newest["detail"] == {"overlap": 3, "guidelines": "Be kind."}
    for bad in ({"overlap": 0}, {"repeats": 1.0}, {"lease_seconds": 0}, {"guidelines": 3}, {"colour": "red"}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            store.update_settings(**bad)
    assert store.settings["overlap"] == 3


def test_items_are_added_once(store):
    assert store.add_items([item("a"), item("b"), item("a")]) == 2
    assert store.add_items([item("b"), item("c")]) == 1
    assert [one.prompt for one in store.items()] == ["a", "b", "c"]


def test_a_backup_is_whole_while_others_write(store, tmp_path):
    store.add_items([item(str(i)) for i in range(200)])
    (ada,) = people(store, "ada")
    done = threading.Event()

    def write():
        while not done.is_set() and (task := store.next_item(ada)):
            store.vote(ada, task.item.id, [1, 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            copy = Store.open(store.backup(tmp_path / f"copy{number}.db"))
            assert copy._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert len(copy.items()) == 200 and len(copy.current_votes()) == len(copy.events())
            copy.close()
    finally:
        done.set()
        writer.join()
    with pytest.raises(UsageError, match="there already"):
        store.backup(tmp_path / "copy0.db")


# Versions of the file


def test_an_older_file_is_brought_up_to_date_with_all_that_it_holds(store, monkeypatch):
    store.add_items([item("a")])
    (ada,) = people(store, "ada")
    store.vote(ada, store.next_item(ada).item.id, [1, 2])
    store.close()
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE queue ADD COLUMN colour TEXT DEFAULT 'red';")
    )
    newer = Store.open(store.path)
    assert newer._db.execute("PRAGMA user_version").fetchone()[0] == 2
    assert newer._db.execute("SELECT colour FROM queue").fetchone()[0] == "red"
    assert [vote.ranks for vote in newer.current_votes()] == [[1, 2]]
    newer.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(store, monkeypatch):
    store.add_items([item("a")])
    store.close()
    bad = (*schema.MIGRATIONS, "ALTER TABLE queue ADD COLUMN colour TEXT;\nALTER TABLE nothing ADD COLUMN a TEXT;")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", bad)
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            Store.open(store.path)
    again = Store.open(store.path)
    columns = [row["name"] for row in again._db.execute("PRAGMA table_info(queue)")]
    assert "colour" not in columns and [one.prompt for one in again.items()] == ["a"]
    again.close()


def test_a_file_of_a_newer_version_of_something_else_or_broken_is_refused_in_words(store, tmp_path):
    store.close()
    db = sqlite3.connect(store.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UsageError, match="newer"):
        Store.open(store.path)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE songs (name)")
    other.close()
    with pytest.raises(UsageError, match="something else"):
        Store.open(tmp_path / "other.db", create=True)
    (tmp_path / "text.db").write_text("not a database at all, but long enough to be looked at " * 10)
    with pytest.raises(UsageError, match="not a whole SQLite file"):
        Store.open(tmp_path / "text.db")
    with pytest.raises(UsageError, match="not there"):
        Store.open(tmp_path / "missing.db")
    with pytest.raises(UsageError, match="folder"):
        Store.open(tmp_path, create=True)
    assert not (tmp_path / "missing.db").exists()


# Several processes, and none that dies


WRITER = """
    import sys
    from rlhf_fast.annotate.store import Store

    path, annotator = sys.argv[1], int(sys.argv[2])
    store = Store.open(path)
    while task := store.next_item(annotator):
        number = store.vote(annotator, task.item.id, [1, 2], request_id=task.item.id)
        print(task.item.id, number, flush=True)  # acknowledged
"""


def start(path: Path, annotator: int) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(annotator)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_no_acknowledged_vote_is_lost_when_the_writer_is_killed_again_and_again(store):
    store.add_items([item(str(i)) for i in range(5000)])
    (ada,) = people(store, "ada")
    draw, acknowledged = random.Random(0), {}
    for _ in range(6):
        process = start(store.path, ada)
        assert process.stdout is not None
        for _ in range(draw.randrange(3, 40)):
            name, number = process.stdout.readline().split()
            acknowledged[name] = int(number)
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines():  # said before it died
            if len(line.split()) == 2:
                acknowledged[line.split()[0]] = int(line.split()[1])
        process.wait()
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    kept = {vote.item_id: vote.event_id for vote in store.current_votes()}
    assert len(acknowledged) > 20 and acknowledged.items() <= kept.items()
    assert len(kept) <= len(acknowledged) + 6  # at most one a process that was written and not yet told
    before = store.queue_lengths()
    store.rebuild()
    assert store.queue_lengths() == before


def test_two_processes_share_a_file_and_no_item_is_done_twice(store):
    store.add_items([item(str(i)) for i in range(60)])
    ids = people(store, "ada", "bob")
    said = [process.communicate(timeout=120)[0].split() for process in [start(store.path, one) for one in ids]]
    done = [set(words[::2]) for words in said]
    assert done[0] | done[1] == {one.id for one in store.items()} and not done[0] & done[1]
    assert len(store.events()) == 60


def test_a_file_that_another_process_holds_is_said_so(store, monkeypatch):
    store.add_items([item("a")])
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.2)
    other = Store.open(store.path)
    blocker = sqlite3.connect(store.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(UsageError, match=r"busy for 0.2 seconds.*Nothing was written"):
        other.add_items([item("b")])
    blocker.execute("ROLLBACK")
    assert other.add_items([item("b")]) == 1
    blocker.close()
    other.close()


def test_several_threads_write_and_read_at_once(store):
    store.add_items([item(str(i)) for i in range(120)])
    ids, errors = people(store, "ada", "bob", "eve", "joe"), []

    def work(one: int) -> None:
        try:
            while task := store.next_item(one):
                store.vote(one, task.item.id, [1, 2])
                store.current_votes()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(store.events()) == len(store.current_votes()) == 120
