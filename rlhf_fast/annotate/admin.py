"""The administrator's pages: figures, annotators and their links, disagreements and decisions, export, audit log.

/admin                     all of it on one page, drawn on the server (`admin.html`)
/admin/decide/ITEM         the comparison page, on which a decision is made; blind too, with the annotators' votes below
/admin/export              a file of pairs, ranks or votes
/api/admin/...             what these pages ask
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, cast, get_args

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_fast.annotate.export import Format, Policy, Ties, export, write_export
from rlhf_fast.annotate.figures import Figures, figures
from rlhf_fast.annotate.items import Item, Task, Vote
from rlhf_fast.annotate.ranking import Standing
from rlhf_fast.annotate.rendering import marked
from rlhf_fast.annotate.room import VOTE, Room, administrator, beginning, body, by_response, page, room_of, task_json
from rlhf_fast.annotate.security import Refused
from rlhf_fast.report.charts import interval_bar, nice_ticks, tick_text
from rlhf_fast.runtime.statistics import Interval

FRESH_SECONDS = 10.0
"""How long figures are shown before they are worked out again."""
MOST_SHOWN = 100
_KINDS = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}


async def overview(request: Request) -> Response:
    """The page of figures."""
    administrator(request)
    room = room_of(request)

    def work() -> dict[str, Any]:
        found = figures_of(room)
        queue = room.store.queue_of_disagreements()
        return {
            "found": found, "queue": [(one, beginning(room.store.item(one.item_id))) for one in queue[:MOST_SHOWN]],
            "queued": len(queue), "log": room.store.audit_log(MOST_SHOWN), "settings": room.store.settings,
            "columns": columns(found.by_hour), "strengths": strengths(found.leaderboard.standings),
        }  # fmt: skip

    found = await room.read(work)
    return page(request, "admin.html", title="Feedback", **found, interval=interval, when=when, bar=bar)


def figures_of(room: Room) -> Figures:
    at, found = room.figures
    if found is None or time.monotonic() - at > FRESH_SECONDS:
        found = figures(room.store)
        room.figures = (time.monotonic(), found)
    return found


# Annotators


async def add_annotator(request: Request) -> Response:
    who, room, said = administrator(request), room_of(request), await body(request, {"name": str, "role": str})
    token = await room.writer(lambda: room.store.add_annotator(said["name"], said["role"], who.name))
    return link_answer(request, said["name"].strip(), token)


async def new_link(request: Request) -> Response:
    who, room, said = administrator(request), room_of(request), await body(request, {"name": str})
    token = await room.writer(lambda: room.store.new_token(said["name"], who.name))
    return link_answer(request, said["name"], token)


async def revoke(request: Request) -> Response:
    who, room, said = administrator(request), room_of(request), await body(request, {"name": str})
    await room.writer(lambda: room.store.revoke(said["name"], who.name))
    changed(room)
    return JSONResponse({})


def link_answer(request: Request, name: str, token: str) -> Response:
    """A new link, this once: only a hash of its token is kept."""
    changed(room_of(request))
    origin = request.headers["origin"]  # the guard has checked it
    return JSONResponse({"name": name, "link": f"{origin}/in/{token}"})


def changed(room: Room) -> None:
    """An administrator sees at once what they have done; others' votes within `FRESH_SECONDS`."""
    room.sessions.forget()
    room.figures = (0.0, None)


# Decisions


async def decide_page(request: Request) -> Response:
    administrator(request)
    item = request.path_params["item"]
    await room_of(request).read(room_of(request).store.item, item)
    return page(request, "compare.html", title="Decide", guidelines="", mode="decide", item=item)


async def decide_item(request: Request) -> Response:
    administrator(request)
    room, item = room_of(request), request.path_params["item"]
    return JSONResponse(await room.read(decision_json, room, item))


async def decide(request: Request) -> Response:
    """Write a decision; the answer is the next item that waits for one."""
    who, room, said = administrator(request), room_of(request), await body(request, VOTE)
    ranks = by_response(said["ranks"], said["order"])
    await room.writer(
        lambda: room.store.adjudicate(
            who.id, said["item"], ranks, all_bad=said["all_bad"], note=said["note"], seconds=said["seconds"],
            shown_order=said["order"], request_id=said["request"],
        )
    )  # fmt: skip
    changed(room)

    def following() -> dict[str, Any]:
        queue = room.store.queue_of_disagreements()
        return decision_json(room, queue[0].item_id if queue else None)

    return JSONResponse(await room.read(following))


async def decide_marked(request: Request) -> Response:
    administrator(request)
    room = room_of(request)

    def work() -> list[str]:
        item = room.store.item(request.path_params["item"])
        return [str(one) for one in marked([item.responses[i] for i in decision_order(item)])]

    return JSONResponse({"responses": await room.read(work)})


def decision_order(item: Item) -> list[int]:
    """The order in which an administrator sees the responses: some, and the same again."""
    order = list(range(len(item.responses)))
    random.Random(f"decision {item.id}").shuffle(order)
    return order


def decision_json(room: Room, item_id: str | None) -> dict[str, Any]:
    decided, waiting = room.store.adjudications(), len(room.store.queue_of_disagreements())
    progress = {"answered": len(decided), "skipped": 0, "total": len(decided) + waiting, "seconds": None}
    if item_id is None:
        return {"task": None, "progress": progress, "votes": []}
    item = room.store.item(item_id)
    order, votes = decision_order(item), [vote for vote in room.store.current_votes() if vote.item_id == item_id]
    task = Task(item, order, 0.0, len(decided) + 1, len(decided) + max(1, waiting), decided.get(item_id))
    said = [{"who": vote.annotator.name, "summary": in_order(vote, order), "note": vote.note} for vote in votes]
    return {"task": task_json(room, task), "progress": progress, "votes": said}


def in_order(vote: Vote, order: list[int]) -> str:
    """What a vote says, in the numbers of another order than its annotator saw."""
    return Vote(**{**vars(vote), "shown_order": order}).summary


# Export


async def download(request: Request) -> Response:
    who, room = administrator(request), room_of(request)
    form, kind, policy = asked_for(request.query_params)

    def work() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            (path,) = write_export(export(room.store, form, policy), Path(folder) / f"{form}.{kind}")
            return path.read_bytes()

    content = await room.read(work)
    await room.writer(lambda: room.store.audit(who.name, "export", dict(request.query_params)))
    headers = {"content-disposition": f'attachment; filename="{form}.{kind}"'}
    return Response(content, media_type=_KINDS[kind], headers=headers)


def asked_for(query: Mapping[str, str]) -> tuple[Format, str, Policy]:
    """What the form says: rows, kind of file, and policy. Raises `Refused`."""
    form, kind, ties = query.get("form", "pairs"), query.get("format", "jsonl"), query.get("ties", "drop")
    for value, known in ((form, get_args(Format)), (kind, tuple(_KINDS)), (ties, get_args(Ties))):
        if value not in known:
            raise Refused(400, f"Expected one of {', '.join(known)}.")
    try:
        least, votes = float(query.get("min_agreement", "0.5")), int(query.get("min_votes", "1"))
    except ValueError:
        raise Refused(400, "min_agreement and min_votes are expected to be numbers.") from None
    if not 0 <= least <= 1 or votes < 1:
        raise Refused(400, "min_agreement is expected to be 0 to 1, min_votes 1 or more.")
    return cast("Format", form), kind, Policy(cast("Ties", ties), least, votes, pseudonyms="pseudonyms" in query)


# Drawing


def interval(found: Interval | None, digits: int = 2) -> str:
    """0.81 [0.75, 0.86], the value alone where it has no interval, or a dash where there is nothing to tell from."""
    if found is None:
        return "\N{EN DASH}"
    value, low, high = (f"{round(one, digits) + 0.0:.{digits}f}" for one in (found.value, found.low, found.high))
    text = f"{value} [{low}, {high}]" if found.low < found.high else value
    return text.replace("-", "\N{MINUS SIGN}")


def bar(found: Interval | None, label: str) -> Markup:
    """A share with its interval, drawn."""
    if found is None:
        return Markup("")
    value, low, high = (min(1.0, max(0.0, one)) for one in (found.value, found.low, found.high))
    return Markup(interval_bar(Interval(value, low, high, found.count), label))


def when(seconds: float) -> str:
    """Of this machine's clock, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def columns(by_hour: Mapping[int, int]) -> Markup:
    """Votes an hour, from the first hour to the last one, of the latest three days."""
    if not by_hour:
        return Markup("")
    last = max(by_hour)
    hours = list(range(max(min(by_hour), last - 71 * 3600), last + 1, 3600))
    ticks = [tick for tick in nice_ticks(0, max(by_hour.values())) if tick >= 0]
    wide, high, left, bottom = 640, 150, 40, 22
    step = (wide - left - 4) / max(12, len(hours))
    up = (high - bottom - 8) / ticks[-1]
    body = []
    for tick in ticks:
        y = high - bottom - tick * up
        body.append(f'<line class="grid" x1="{left}" x2="{wide}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="end" x="{left - 6}" y="{y + 3.5:.1f}">{tick_text(tick, ticks)}</text>')
    for n, hour in enumerate(hours):
        tall = by_hour.get(hour, 0) * up
        place = f'x="{left + n * step + 1:.1f}" y="{high - bottom - tall:.1f}" width="{max(1.0, step - 2):.1f}"'
        title = f"<title>{when(hour)}: {by_hour.get(hour, 0)}</title>"
        body.append(f'<rect class="column" {place} height="{tall:.1f}">{title}</rect>')
    body.append(f'<text x="{left}" y="{high - 6}">{when(hours[0])}</text>')
    if len(hours) > 1:
        body.append(f'<text class="end" x="{left + len(hours) * step:.1f}" y="{high - 6}">{when(last)[11:]}</text>')
    return _svg(wide, high, "Votes in each hour", "".join(body), "chart")


def strengths(standings: list[Standing]) -> list[Markup]:
    """For each source its log strength and interval, on one scale, with a mark at 0."""
    if not standings:
        return []
    ticks = nice_ticks(min(s.strength.low for s in standings), max(s.strength.high for s in standings))
    low, span = ticks[0], ticks[-1] - ticks[0]
    drawn = []
    for standing in standings:
        s = standing.strength
        x, a, b, zero = (4 + 192 * (value - low) / span for value in (s.value, s.low, s.high, 0.0))
        body = '<line class="grid" x1="4" x2="196" y1="8" y2="8"/>'
        if low <= 0 <= ticks[-1]:
            body += f'<line class="half" x1="{zero:.1f}" x2="{zero:.1f}" y1="1" y2="15"/>'
        body += f'<line class="line" x1="{a:.1f}" x2="{b:.1f}" y1="8" y2="8"/>'
        body += f'<circle class="dot" cx="{x:.1f}" cy="8" r="3.5"/>'
        drawn.append(_svg(200, 16, f"{standing.source}: {interval(s)}", body, "bar wide"))
    return drawn


def _svg(width: int, height: int, label: str, inner: str, kind: str) -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{inner}</svg>'
    )


ROUTES = [
    Route("/admin", overview), Route("/admin/decide/{item}", decide_page), Route("/admin/export", download),
    Route("/api/admin/annotator", add_annotator, methods=["POST"]),
    Route("/api/admin/link", new_link, methods=["POST"]), Route("/api/admin/revoke", revoke, methods=["POST"]),
    Route("/api/admin/decide", decide, methods=["POST"]), Route("/api/admin/item/{item}", decide_item),
    Route("/api/admin/marked/{item}", decide_marked),
]  # fmt: skip
