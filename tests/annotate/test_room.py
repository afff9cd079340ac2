"""What requests share: a writer whose answers mean that something is on the disk, ranks by place, turns of a prompt."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_fast.annotate.items import make_item
from rlhf_fast.annotate.room import Writer, beginning, by_response, turn
from rlhf_fast.annotate.security import Refused
from rlhf_fast.annotate.store import Store
from rlhf_fast.runtime.errors import UsageError
from tests.annotate.web import pairs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    made = Store.open(tmp_path / "votes.db", create=True)
    made.update_settings(repeats=0.0)
    made.add_items(pairs(8))
    yield made
    made.close()


def given(store: Store, name: str) -> tuple[int, str]:
    store.add_annotator(name)
    who = store.annotators()[-1].id
    return who, store.next_item(who).item.id


def run(store: Store, *works) -> list:
    """What `Writer` answers to calls that come at once."""

    async def ask():
        writer = Writer(store)
        try:
            return await asyncio.gather(*(writer(work) for work in works), return_exceptions=True)
        finally:
            writer.close()

    return asyncio.run(ask())


def test_calls_that_come_at_once_are_written_together_and_each_gets_its_own_answer(store, monkeypatch):
    commits, together = [], store.together
    monkeypatch.setattr(store, "together", lambda: commits.append(1) or together())
    people = [given(store, f"a{n}") for n in range(5)]
    events = run(store, *(lambda who=who, item=item: store.vote(who, item, [1, 2]) for who, item in people))
    assert len(set(events)) == 5 and [row["id"] for row in store.events()] == sorted(events)
    assert len(commits) <= 5


def test_one_that_fails_takes_nothing_of_the_others_along(store):
    (ada, first), (grace, second) = given(store, "Ada"), given(store, "Grace")

    def half():
        store.vote(grace, second, [1, 2])
        raise ZeroDivisionError

    answers = run(store, lambda: store.vote(ada, first, [2, 1]), half, lambda: store.vote(ada, "nothing", [1, 2]))
    assert (
        isinstance(answers[0], int) and isinstance(answers[1], ZeroDivisionError) and isinstance(answers[2], UsageError)
    )
    assert first in {row["item_id"] for row in store.events()}


def test_a_commit_that_fails_is_an_answer_to_nobody(store, monkeypatch):
    who, item = given(store, "Ada")
    together = store.together

    class Failing:
        def __enter__(self):
            self.inner = together()
            self.inner.__enter__()

        def __exit__(self, *_):
            self.inner.__exit__(UsageError, UsageError("the disk is full"), None)
            raise UsageError("the disk is full")

    monkeypatch.setattr(store, "together", Failing)
    (answer,) = run(store, lambda: store.vote(who, item, [1, 2]))
    assert isinstance(answer, UsageError) and store.events() == []


def test_what_was_asked_before_the_end_is_written(store):
    who, item = given(store, "Ada")
    writer = Writer(store)

    async def ask():
        waiting = asyncio.ensure_future(writer(lambda: store.vote(who, item, [1, 2])))
        await asyncio.sleep(0)
        writer.close()
        return await waiting

    assert asyncio.run(ask()) == store.events()[0]["id"]


def test_ranks_by_place_become_ranks_by_response():
    assert by_response([1, None, 2], [2, 0, 1]) == [None, 2, 1]
    for order in ([0, 0, 1], [0, 1], [0, 1, 3], [None, 0, 1], [-1, 0, 1]):
        with pytest.raises(Refused, match="each response once"):
            by_response([1, 2, None], order)


def test_a_turn_shows_calls_and_parts():
    calls = [{"id": "1", "function": {"name": "look_up", "arguments": {"of": "<b>"}}}, {"function": "odd"}]
    shown = turn({"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "hm"})
    assert shown["calls"] == 'look_up({"of": "<b>"})\n{"function": "odd"}'
    assert shown["html"] == "" and shown["thought"] == "hm"
    assert "&quot;text&quot;" in turn({"role": "user", "content": [{"type": "text", "text": "x"}]})["html"]


def test_the_beginning_of_a_prompt_is_one_short_line():
    chat = [{"role": "user", "content": "first"}, {"role": "user", "content": "a\n\n" + "b " * 100}]
    assert beginning(make_item(chat, ["x", "y"])) == "a" + " b" * 44 + "\N{HORIZONTAL ELLIPSIS}"
    assert beginning(make_item("short", ["x", "y"])) == "short"


def test_no_acknowledged_vote_is_lost_when_the_server_is_killed_under_load():
    command = [sys.executable, "-m", "benchmarks.annotate_load", "--seconds", "4", "--rate", "25", "--annotators", "5",
               "--kills", "2", "--port", "8979"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "votes acknowledged: 100 of 100 due" in done.stdout and "kills: 2" in done.stdout
    assert "lost: 0; other than sent: 0; twice: 0" in done.stdout
