"""What stands between the page and everybody else: `Guard`, through which every request and every answer passes.

A request has to name this server (against DNS rebinding); one that changes something has to come from its own page
(Origin, a CSRF token, JSON), from somebody who is known, in a body of bounded size and time, and not too often.
Every answer carries the headers that keep a text of a model, or another page, from doing anything with it.

address_refusal(host, ...)      why a server may not listen there, before a socket is opened
csrf_token(token)               what the page has to send back: nobody without the cookie can work it out
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rlhf_fast.runtime.errors import UsageError

LOG = logging.getLogger("rlhf_fast.annotate")
SHORTEST_TOKEN = 16
LONGEST_TOKEN = 200
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
COOKIE_SECONDS = 90 * 24 * 3600

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types rlhf-fast",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request's body, which has to be there within `body_seconds`. Of what one person asks for, and
    of what is asked for without a valid link from one address: how many at once, and how many a second in the long
    run; files of the page itself are not counted."""

    body: int = 64 * 1024
    body_seconds: float = 10.0
    burst: int = 60
    per_second: float = 20.0
    stranger_burst: int = 100
    stranger_per_second: float = 2.0


def address_refusal(host: str, token: str | None, names: Iterable[str] = ()) -> None:
    """Raise `UsageError` where `host` can be reached from other machines and no token was given, or a short one; and
    for a name that no browser would send."""
    for name in names:
        if not name or host_name(name) != name.lower():
            raise UsageError(f"a name is {name!r}; expected what stands between :// and the next / or : of an address.")
    if token is not None and not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        raise UsageError(
            f"a token of {len(token)} characters was given, expected {SHORTEST_TOKEN} to {LONGEST_TOKEN}. "
            "`python -c 'import secrets; print(secrets.token_urlsafe())'` makes one."
        )
    if token is not None and not all(c.isascii() and (c.isalnum() or c in "-_.~") for c in token):
        raise UsageError(
            "the token holds a character that an address cannot; expected letters, digits and - _ . ~ only."
        )
    if host not in LOOPBACK and not token:
        raise UsageError(
            f"host {host!r} can be reached from other machines, and no token was given; expected one for any address "
            "but 127.0.0.1. Give --token, or leave --host out and forward the port (ssh -L)."
        )


def csrf_token(token: str) -> str:
    """64 hexadecimal digits that follow from the secret of a cookie, so that a restart of the server changes none."""
    return hmac.new(token.encode(), b"rlhf-fast annotate: csrf", hashlib.sha256).hexdigest()


def host_name(header: str) -> str:
    """The name in a Host header, without its port; '' where it is not one."""
    if header.startswith("["):
        name, closed, port = header[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") else port and "x"
    else:
        name, _, port = header.partition(":")
        closed = "]"
    fine = closed and (not port or port.isdigit()) and all(c.isascii() and (c.isalnum() or c in "-._:") for c in name)
    return name.lower() if fine else ""


@dataclass
class Hosts:
    """The names under which this server may be called. A page elsewhere can make its own name point here, not an
    address: so every name has to be known, and addresses are let through where it listens on all of them."""

    host: str
    names: tuple[str, ...] = ()

    def allows(self, header: str) -> bool:
        name = host_name(header)
        if not name:
            return False
        if name in self.names or name == self.host.lower():
            return True
        if self.host in LOOPBACK:
            return name in LOOPBACK
        return self.host in EVERYWHERE and (_is_address(name) or name == "localhost")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


@dataclass
class Buckets:
    """Token buckets by key: `burst` at once, then `per_second`."""

    burst: float
    per_second: float
    levels: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def wait(self, key: Any, now: float) -> float:
        """Take one; the seconds until there is one, or 0.0 where it was taken."""
        level, at = self.levels.get(key, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.per_second)
        if level < 1:
            self.levels[key] = (level, now)
            return (1 - level) / self.per_second
        self.levels[key] = (level - 1, now)
        if len(self.levels) > 10_000:
            full = self.burst / self.per_second
            self.levels = {k: v for k, v in self.levels.items() if now - v[1] < full}
        return 0.0


class Refused(Exception):
    """An answer that ends a request: status, words for the person, and headers."""

    def __init__(self, status: int, words: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, list(headers)


@dataclass
class Sessions:
    """Whose a token is. `look_up` asks the store; what it said is believed for `seconds`."""

    look_up: Callable[[str], Awaitable[Any]]
    seconds: float = 5.0
    seen: dict[bytes, tuple[Any, float]] = field(default_factory=dict)

    def is_known(self, token: str) -> bool:
        """Whether it was somebody's before: asking again is no guess."""
        return _digest(token) in self.seen

    async def find(self, token: str) -> Any:
        """The annotator, or None."""
        key, now = _digest(token), time.monotonic()
        who, at = self.seen.get(key, (None, -self.seconds))
        if now - at >= self.seconds:
            who = await self.look_up(token)
            if who is None:
                self.seen.pop(key, None)
            else:
                self.seen[key] = (who, now)
        return who

    def forget(self) -> None:
        """Ask the store again: a link was withdrawn."""
        self.seen.clear()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Guard:
    """ASGI: the checks around `app`.

    An app below finds `annotator` (or None) and `token` in the request's state, and the whole body of a POST.
    """

    def __init__(self, app: Any, hosts: Hosts, cookie: str, sessions: Sessions, limits: Limits | None = None) -> None:
        self.app, self.hosts, self.cookie, self.sessions = app, hosts, cookie, sessions
        self.limits = limits or Limits()
        self.people = Buckets(self.limits.burst, self.limits.per_second)
        self.strangers = Buckets(self.limits.stranger_burst, self.limits.stranger_per_second)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a WebSocket: there is none
            return await send({"type": "websocket.close", "code": 1008})
        began = False

        async def guarded(message: Any) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                message = {**message, "headers": _with_headers(message["headers"])}
            await send(message)

        try:
            receive = await self.checked(scope, receive)
            await self.app(scope, receive, guarded)
        except Refused as refused:
            await _answer(guarded, refused)
        except Exception:
            LOG.exception("%s %r failed", scope["method"], scope["path"].partition("/in/")[0])  # no token in a log
            if not began:
                says = "The server failed at this; its log says how. What was sent may not be saved: send it again."
                await _answer(guarded, Refused(500, says))
        return None

    async def checked(self, scope: Any, receive: Any) -> Any:
        """The `receive` for the app. Raises `Refused`."""
        hosts, headers = _all_headers(scope)
        if len(hosts) != 1 or not self.hosts.allows(hosts[0]):
            raise Refused(421, "This server is not called by that name.")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refused(405, "That method is not served here.", [("allow", "GET, HEAD, POST")])
        self._same_origin(scope["method"], hosts[0], headers)
        if scope["path"].startswith("/static/") and scope["method"] != "POST":
            return receive
        token = _cookie(headers.get("cookie", ""), self.cookie)
        if token is None or not self.sessions.is_known(token) or scope["path"].startswith("/in/"):
            self._often(self.strangers, (scope.get("client") or ("",))[0])  # before a guess is looked at
        who = await self.sessions.find(token) if token else None
        if who is not None:
            self._often(self.people, who.id)
        scope.setdefault("state", {}).update(annotator=who, token=token if who else None)
        if scope["method"] != "POST":
            return receive
        if who is None or token is None:
            raise Refused(401, "Open your private link again: this page does not know you.")
        if not hmac.compare_digest(headers.get("x-csrf-token", "").encode(), csrf_token(token).encode()):
            raise Refused(403, "The page's own mark was missing or wrong. Reload the page.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "Expected application/json.")
        return _replay(await self._body(headers, receive))

    def _same_origin(self, method: str, host: str, headers: dict[str, str]) -> None:
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if method == "POST" and headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            raise Refused(403, "This request came from another page.")
        if site in ("cross-site", "same-site") and (method == "POST" or mode != "navigate"):
            raise Refused(403, "This request came from another page.")

    def _often(self, buckets: Buckets, key: Any) -> None:
        if wait := buckets.wait(key, time.monotonic()):
            raise Refused(429, "Too many requests; wait a moment.", [("retry-after", str(int(wait) + 1))])

    async def _body(self, headers: dict[str, str], receive: Any) -> bytes:
        limit = self.limits.body
        stated = headers.get("content-length", "0")
        refused = Refused(413, f"That is more than {limit} bytes.", [("connection", "close")])
        if not stated.isdigit() or int(stated) > limit:
            raise refused
        body, until = b"", time.monotonic() + self.limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - time.monotonic()))
            except asyncio.TimeoutError:
                raise Refused(408, "The request took too long to arrive.", [("connection", "close")]) from None
            if message["type"] == "http.disconnect":
                raise Refused(400, "The connection was closed.")
            body += message.get("body", b"")
            if len(body) > limit:
                raise refused
            if not message.get("more_body"):
                return body


def _all_headers(scope: Any) -> tuple[list[str], dict[str, str]]:
    hosts: list[str] = []
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key == "host":
            hosts.append(text)
        elif key in headers and key in ("origin", "x-csrf-token", "content-length"):
            raise Refused(400, f"{key} was given twice.")
        else:
            headers[key] = f"{headers[key]}; {text}" if key == "cookie" and key in headers else text
    return hosts, headers


def _cookie(header: str, name: str) -> str | None:
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name and 0 < len(value) <= LONGEST_TOKEN:
            return value
    return None


def _with_headers(given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    names = {name.lower() for name, _ in given}
    extra = dict(HEADERS)
    if b"cache-control" not in names:
        extra["cache-control"] = "no-store"
    return [*given, *((name.encode(), value.encode()) for name, value in extra.items() if name.encode() not in names)]


def _replay(body: bytes) -> Any:
    sent = False

    async def receive() -> Any:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _answer(send: Any, refused: Refused) -> None:
    body = json.dumps({"error": refused.words}).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), *refused.headers]
    await send({
        "type": "http.response.start", "status": refused.status,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": body})
