"""What every request of the comparison page's server needs.

Writer        the one thread that writes: whatever waits is committed at once
Room          the store, the threads, who is known, and what has been drawn
page, body    an answer from a template; a request's JSON, checked
task_json     an item as the page gets it
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from rlhf_fast.annotate.items import Annotator, Item, Task
from rlhf_fast.annotate.rendering import markdown, similarity
from rlhf_fast.annotate.security import Refused, Sessions, csrf_token
from rlhf_fast.annotate.store import Store

T = TypeVar("T")
SIMILAR = 0.6
"""Share of common words from which on the page says that differences can be marked."""
KEPT_DRAWN = 500
_MOST_AT_ONCE = 64


class Writer:
    """The one thread that writes: it takes all that waits, runs it in one transaction, and answers after the commit."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="annotate-writer", daemon=True)
        self._thread.start()

    async def __call__(self, work: Callable[[], T]) -> T:
        """The result of `work`, once it is on the disk. What it or the commit raised is raised here."""
        future: Future[T] = Future()
        self._jobs.put((work, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """What was asked for before is written; nothing may be asked for after."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            jobs, job = [], self._jobs.get()
            while job is not None:
                jobs.append(job)
                if len(jobs) == _MOST_AT_ONCE or self._jobs.empty():
                    break
                job = self._jobs.get()
            ended = job is None
            self._commit(jobs)

    def _commit(self, jobs: Sequence[tuple[Callable[[], Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self.store.together():
                for work, future in jobs:
                    try:
                        done.append((future, work(), None))
                    except Exception as error:  # of this one: the others are written
                        done.append((future, None, error))
        except Exception as error:  # of the commit: nothing is written
            done = [(future, None, error) for _, future in jobs]
        for future, result, failure in done:
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked has gone; what was written stays
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)


class Drawn(NamedTuple):
    """An item's HTML: of the prompt, and of the responses in the item's own order."""

    prompt: str
    responses: list[str]
    similar: bool


@dataclass
class Room:
    """readers: threads for what only reads, and for drawing. An item never changes, so that what was drawn is kept."""

    store: Store
    writer: Writer
    readers: ThreadPoolExecutor
    sessions: Sessions
    cookie: str
    drawn: dict[str, Drawn] = field(default_factory=dict)
    figures: tuple[float, Any] = (0.0, None)

    async def read(self, work: Callable[..., T], *args: Any) -> T:
        """What it returns or raises, from a thread that may take its time."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work, *args)

    def draw(self, item: Item) -> Drawn:
        """Slow the first time: call it in a thread."""
        found = self.drawn.get(item.id)
        if found is None:
            turns = [turn(message) for message in item.messages]
            tools = json.dumps(item.tools, ensure_ascii=False, indent=2) if item.tools else ""
            prompt = templates().get_template("prompt.html").render(turns=turns, tools=tools)
            similar = similarity(item.responses) >= SIMILAR
            found = Drawn(prompt, [str(markdown(text)) for text in item.responses], similar)
            if len(self.drawn) >= KEPT_DRAWN:
                self.drawn.clear()
            self.drawn[item.id] = found
        return found


def turn(message: dict[str, Any]) -> dict[str, Any]:
    """A turn as the page shows it: who says it, the HTML of its text, and its calls of tools."""
    content = message.get("content") or ""
    return {
        "role": str(message.get("role", "")),
        "name": str(message.get("name", "")),
        "thought": str(message.get("reasoning_content") or ""),
        "html": markdown(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2)),
        "calls": "\n".join(map(call_text, message.get("tool_calls") or [])),
    }


def call_text(call: Any) -> str:
    """name({"argument": value}), or the call as it is where it has another form than OpenAI's."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and {"name", "arguments"} >= function.keys():
        return f"{function.get('name')}({json.dumps(function.get('arguments'), ensure_ascii=False)})"
    return json.dumps(call, ensure_ascii=False)


def beginning(item: Item) -> str:
    """Of the last thing that was asked, as plain text."""
    asked = item.messages[-1].get("content") or ""
    text = " ".join((asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False))[:400].split())
    return text if len(text) <= 90 else text[:89] + "\N{HORIZONTAL ELLIPSIS}"


def task_json(room: Room, task: Task) -> dict[str, Any]:
    """A task for the page: HTML and text of the responses in the order shown, and what was said of it before. Nothing
    in it says where a response came from, or that an item is a repeat or a check."""
    drawn, said = room.draw(task.item), None
    if task.vote is not None:
        ranks = [task.vote.ranks[i] for i in task.order]
        said = {"kind": task.vote.kind, "ranks": ranks, "all_bad": task.vote.all_bad, "note": task.vote.note}
    return {
        "item": task.item.id, "order": task.order, "position": task.position, "total": task.total,
        "prompt": drawn.prompt, "responses": [drawn.responses[i] for i in task.order],
        "texts": [task.item.responses[i] for i in task.order], "similar": drawn.similar, "said": said,
    }  # fmt: skip


# Answers and requests


@lru_cache(1)
def templates() -> Environment:
    loader = PackageLoader("rlhf_fast.annotate", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page for whoever is there (`who` may be None); `csrf` is the mark that its requests bring back."""
    token = request.state.token
    values |= {"who": request.state.annotator, "csrf": csrf_token(token) if token else ""}
    return HTMLResponse(templates().get_template(template).render(values), status)


def room_of(request: Request) -> Room:
    room: Room = request.app.state.room
    return room


def person(request: Request) -> Annotator:
    """Who asks. Raises `Refused` where nobody is known."""
    if request.state.annotator is None:
        raise Refused(401, "Open your private link again: this page does not know you.")
    who: Annotator = request.state.annotator
    return who


def administrator(request: Request) -> Annotator:
    """Who asks. Raises `Refused` unless it is an administrator."""
    if (who := person(request)).role != "admin":
        raise Refused(403, "This page is for administrators.")
    return who


VOTE = {"item": str, "order": list, "ranks": list, "all_bad": bool, "note": str, "seconds": float, "request": str}
"""What the page says of an item: ranks are by place on the page, order says which response is where."""


async def body(request: Request, expected: dict[str, type]) -> dict[str, Any]:
    """The request's JSON: an object with exactly the names expected, each of its kind; lists are of whole numbers and
    null. Raises `Refused`."""
    try:
        given = json.loads(await request.body())
        json.dumps(given, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not JSON.") from None
    if not isinstance(given, dict) or given.keys() != expected.keys():
        raise Refused(400, f"Expected an object with {', '.join(expected)}.")
    for name, kind in expected.items():
        value = given[name]
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = given[name] = float(value)
        numbers = not isinstance(value, list) or all(one is None or type(one) is int for one in value)
        if type(value) is not kind or not numbers:
            raise Refused(400, f"{name} is not of the kind expected.")
    if not 0 < len(str(given.get("request", "x"))) <= 100:
        raise Refused(400, "request is expected to have 1 to 100 characters.")
    return given


def by_response(ranks: list[int | None], order: list[int]) -> list[int | None]:
    """Ranks by place on the page -> by response."""
    if sorted(order, key=str) != sorted(range(len(ranks)), key=str):
        raise Refused(400, "order is expected to name each response once.")
    result: list[int | None] = [None] * len(ranks)
    for place, response in enumerate(order):
        result[response] = ranks[place]
    return result
