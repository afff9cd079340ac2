"""The comparison page's server: its addresses, and `serve`, which runs it until it is stopped.

/                 the page of an annotator, which asks /api/... for everything
/in/TOKEN         a private link: it becomes a cookie, and leaves the address bar
/admin            figures, annotators, disagreements, export (`admin.py`)
/api/next, vote, skip, undo, task, marked, answered
                  what the page asks; what changes something is a POST of JSON (`security.Guard` has checked it)

What is written goes through one thread (`Writer`), where everything that waits is committed at once; the answer to a
vote is sent when its commit is on the disk, and has the next item in it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from rlhf_fast.annotate import admin
from rlhf_fast.annotate.items import Annotator, Task
from rlhf_fast.annotate.rendering import markdown, marked
from rlhf_fast.annotate.room import VOTE, Room, Writer, beginning, body, by_response, page, person, room_of, task_json
from rlhf_fast.annotate.security import (
    COOKIE_SECONDS,
    EVERYWHERE,
    LONGEST_TOKEN,
    LOOPBACK,
    Guard,
    Hosts,
    Limits,
    Refused,
    Sessions,
    address_refusal,
)
from rlhf_fast.annotate.store import Store
from rlhf_fast.report.page import STYLE
from rlhf_fast.runtime.errors import UsageError

LOG = logging.getLogger("rlhf_fast.annotate")
OWNER = "admin"
"""The name of the administrator who starts the server."""
_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


class Address(Protocol):
    """What `serve` reads of a config. token: of the administrator's link; None: a new one for each start. names: under
    which it may be called beside its own address."""

    host: str
    port: int
    token: str | None
    names: list[str]


# Pages


async def home(request: Request) -> Response:
    if request.state.annotator is None:
        return strange(request)
    room = room_of(request)
    guidelines = await room.read(lambda: room.store.settings["guidelines"])
    return page(
        request, "compare.html", title="Compare responses", guidelines=markdown(guidelines), mode="vote", item=""
    )


def strange(request: Request) -> Response:
    """Who follows a link of another site brings no cookie with it, and brings it when the page loads itself again."""
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return page(request, "again.html", title="One moment")
    words = "This page needs your private link. Open it again, or ask for a new one."
    return page(request, "message.html", 401, title="Who are you?", words=words)


async def enter(request: Request) -> Response:
    token, room = request.path_params["token"], room_of(request)
    who = await room.sessions.find(token) if len(token) <= LONGEST_TOKEN else None
    if who is None:
        words = "This link is not valid, or a newer one has taken its place. Ask for a new one."
        return page(request, "message.html", 404, title="That link does not work", words=words)
    response = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    response.set_cookie(
        room.cookie, token, max_age=COOKIE_SECONDS, path="/", secure=secure, httponly=True, samesite="strict"
    )
    return response


@lru_cache(1)
def static_files() -> dict[str, tuple[bytes, str]]:
    """By name: bytes and kind. There is nothing else under /static, whatever a path says."""
    folder = files("rlhf_fast.annotate") / "static"
    found = {one.name: (one.read_bytes(), _KINDS[one.name.rpartition(".")[2]]) for one in folder.iterdir()}
    return found | {"report.css": (STYLE.encode(), _KINDS["css"])}


async def static(request: Request) -> Response:
    body, kind = static_files().get(request.path_params["name"], (b"", ""))
    if not kind:
        return JSONResponse({"error": "There is no such file."}, 404)
    return Response(body, media_type=kind, headers={"cache-control": "no-cache"})


# What the page asks


SKIP = {name: VOTE[name] for name in ("item", "order", "note", "seconds", "request")}


async def answer(request: Request, task: Task | None, **more: Any) -> Response:
    """The next item, or None, and how far the annotator is."""
    room, who = room_of(request), person(request)

    def draw() -> dict[str, Any]:
        progress = room.store.progress(who.id)._asdict()
        return {"task": task_json(room, task) if task else None, "progress": progress, **more}

    return JSONResponse(await room.read(draw))


async def next_task(request: Request) -> Response:
    room, who = room_of(request), person(request)
    return await answer(request, await room.writer(lambda: room.store.next_item(who.id)))


async def vote(request: Request) -> Response:
    room, who, said = room_of(request), person(request), await body(request, VOTE)
    order = said["order"]

    def write() -> tuple[int, Task | None]:
        event = room.store.vote(
            who.id, said["item"], by_response(said["ranks"], order), all_bad=said["all_bad"], note=said["note"],
            seconds=said["seconds"], shown_order=order, request_id=said["request"],
        )  # fmt: skip
        return event, room.store.next_item(who.id)

    event, task = await room.writer(write)
    return await answer(request, task, event=event)


async def skip(request: Request) -> Response:
    room, who, said = room_of(request), person(request), await body(request, SKIP)

    def write() -> tuple[int, Task | None]:
        event = room.store.skip(
            who.id, said["item"], note=said["note"], seconds=said["seconds"], shown_order=said["order"],
            request_id=said["request"],
        )  # fmt: skip
        return event, room.store.next_item(who.id)

    event, task = await room.writer(write)
    return await answer(request, task, event=event)


async def undo(request: Request) -> Response:
    room, who, said = room_of(request), person(request), await body(request, {"request": str})
    item = await room.writer(lambda: room.store.undo(who.id, request_id=said["request"]))
    task = await room.read(room.store.task, who.id, item) if item else None
    return await answer(request, task, undone=item)


async def one_task(request: Request) -> Response:
    room, who = room_of(request), person(request)
    return await answer(request, await room.read(room.store.task, who.id, request.path_params["item"]))


async def differences(request: Request) -> Response:
    """The responses of a task with their differences marked, in the order shown."""
    room, who = room_of(request), person(request)

    def draw() -> list[str]:
        task = room.store.task(who.id, request.path_params["item"])
        return [str(one) for one in marked([task.item.responses[i] for i in task.order])]

    return JSONResponse({"responses": await room.read(draw)})


async def answered(request: Request) -> Response:
    """What the annotator has said, the latest first, with the beginning of each prompt."""
    room, who = room_of(request), person(request)

    def rows() -> list[dict[str, Any]]:
        said = room.store.answered(who.id)
        prompts = [beginning(room.store.item(one.item_id)) for one in said]
        return [one._asdict() | {"prompt": prompt} for one, prompt in zip(said, prompts, strict=True)]

    return JSONResponse({"answered": await room.read(rows)})


# The server


async def usage_error(request: Request, error: Exception) -> Response:
    return problem(request, 400, str(error))


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem(request, error.status, error.words)


async def not_found(request: Request, error: Exception) -> Response:
    return problem(request, getattr(error, "status_code", 404), "There is nothing at this address.")


def problem(request: Request, status: int, words: str) -> Response:
    """JSON for what the page asks, a page for who opened an address."""
    if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": words}, status)
    return page(request, "message.html", status, title="That did not work", words=words)


class Application(Guard):
    """What uvicorn runs. owner_token: of the administrator's private link."""

    def __init__(
        self, store: Store, host: str, port: int, token: str | None = None, names: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        """token: of the administrator's link; None: a new one. Raises `UsageError` where it may not be served there."""
        address_refusal(host, token, names)
        self.owner_token = token or secrets.token_urlsafe(32)
        self.owner, self.store = owner_of(store), store
        self.readers = ThreadPoolExecutor(2, "annotate-reader")
        sessions, cookie = Sessions(self._look_up), f"rlhf_fast_{port}"
        self.room = Room(store, Writer(store), self.readers, sessions, cookie)
        app = Starlette(
            routes=[*ROUTES, *admin.ROUTES],
            exception_handlers={UsageError: usage_error, Refused: refused, 404: not_found, 405: not_found},
        )
        app.state.room = self.room
        super().__init__(app, Hosts(host, tuple(name.lower() for name in names)), cookie, sessions, limits)

    async def _look_up(self, token: str) -> Annotator | None:
        if hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self.owner_token.encode()):
            return self.owner
        return await asyncio.get_running_loop().run_in_executor(self.readers, self.store.annotator_of, token)

    def close(self) -> None:
        """What waits is written; the store stays open."""
        self.room.writer.close()
        self.readers.shutdown()


ROUTES = [
    Route("/", home), Route("/in/{token}", enter), Route("/static/{name}", static),
    Route("/api/next", next_task, methods=["POST"]), Route("/api/vote", vote, methods=["POST"]),
    Route("/api/skip", skip, methods=["POST"]), Route("/api/undo", undo, methods=["POST"]),
    Route("/api/task/{item}", one_task), Route("/api/marked/{item}", differences), Route("/api/answered", answered),
]  # fmt: skip


def owner_of(store: Store) -> Annotator:
    """The administrator for whom the server is started; added to a store that has none."""
    if not any(one.role == "admin" for one in store.annotators()):
        store.add_annotator(OWNER, "admin")  # the token of the store's own is not used: `serve` makes one
    return next(one for one in store.annotators() if one.role == "admin")


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any that is free. Raises `UsageError`."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(256)
        except OSError:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}. Choose another --port or --host.") from error


def link(host: str, port: int, token: str) -> str:
    """A private link as it is given to somebody; of a server on all addresses by one that others can reach."""
    if host in EVERYWHERE:
        host = _own_address()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/in/{token}"


def _own_address() -> str:
    """Of this machine in its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of an address for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def serve(store: Store, address: Address, say: Callable[[str], Any] | None = None) -> None:
    """Serve the page until SIGINT or SIGTERM; `say` (default: print) is handed the administrator's link. Raises
    `UsageError` for an address where it may not be served, before a socket is opened, or that is taken."""
    address_refusal(address.host, address.token, address.names)
    say = say or partial(print, flush=True)
    with bound(address.host, address.port) as listening:
        port = listening.getsockname()[1]
        app = Application(store, address.host, port, address.token, address.names)
        try:
            store.audit("command line", "server started", {"host": address.host, "port": port})
            say(f"Your private link, as {app.owner.name}: {link(address.host, port, app.owner_token)}")
            if address.host not in LOOPBACK:
                say("This is plain http: who can read the network's traffic can read the links. See docs/annotate.md.")
            say("Stop with Ctrl-C. An answer is on the disk before its page goes on.")
            with suppress(KeyboardInterrupt):  # uvicorn has stopped in order, and says so by raising it again
                uvicorn.Server(server_config(app)).run(sockets=[listening])
        finally:
            app.close()


def server_config(app: Application) -> uvicorn.Config:
    """One process, HTTP/1.1, nothing believed of proxies, no log of addresses (private links would be in it)."""
    return uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=1000, timeout_keep_alive=30, timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16 * 1024,
    )  # fmt: skip
