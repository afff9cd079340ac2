"""The comparison page's server under load: 50 annotators vote a hundred times a second while it is killed and started.

    python -m benchmarks.annotate_load                    # 100 seconds, 5 kills
    python -m benchmarks.annotate_load --seconds 20 --kills 1

The load is an open loop: vote n is due at n / rate seconds whatever became of those before it, and its latency counts
from then, so that a server that stops is not measured less often. An annotator whose vote is not answered sends it
again, with the same request id. In the end every vote that was acknowledged has to be in the store, once and as it was
sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from rlhf_fast.annotate.app import serve
from rlhf_fast.annotate.items import make_item
from rlhf_fast.annotate.security import csrf_token
from rlhf_fast.annotate.store import Store

WORDS = [
    "the",
    "model",
    "answers",
    "with",
    "a",
    "list",
    "of",
    "facts",
    "and",
    "one",
    "line",
    "that",
    "may",
    "be",
    "wrong",
]
SETTLED = 0.5
"""Seconds after a restart's first answer that still belong to it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0, help="How long votes are due.")
    parser.add_argument("--rate", type=float, default=100.0, help="Votes a second, of all annotators together.")
    parser.add_argument("--annotators", type=int, default=50, help="People who vote.")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of the server, evenly in between.")
    parser.add_argument("--port", type=int, default=8977, help="Port on 127.0.0.1.")
    parser.add_argument("--serve", metavar="STORE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Store.open(args.serve), SimpleNamespace(host="127.0.0.1", port=args.port, token=None, names=[]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.db"
        tokens = prepare(path, args.annotators, int(args.rate * args.seconds))
        load = Load(args, path)
        asyncio.run(load.run(tokens))
        return load.report()


def prepare(path: Path, annotators: int, votes: int) -> list[str]:
    """A store with more than enough to do; returns the annotators' tokens."""
    draw = random.Random(0)

    def text() -> str:
        lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(8)]
        return "**An answer.** " + "\n".join(lines) + "\n\n```python\nprint(1)\n```\n"

    store = Store.open(path, create=True)
    overlap = min(5, annotators)
    store.update_settings(overlap=overlap)
    count = votes * 5 // (overlap * 4) + 10 * annotators
    store.add_items(
        make_item(f"Question {n}?", [text(), text()], [{"model": "a"}, {"model": "b"}]) for n in range(count)
    )
    tokens = [store.add_annotator(f"annotator {n}") for n in range(annotators)]
    store.close()
    return tokens


@dataclass
class Acknowledged:
    due: float
    done: float
    request: str
    event: int
    item: str
    ranks: list[int | None]


@dataclass
class Load:
    args: Any
    path: Path
    acknowledged: list[Acknowledged] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)
    again: int = 0
    began: float = 0.0
    processor: float = 0.0
    server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.annotate_load",
            "--serve",
            str(self.path),
            "--port",
            str(self.args.port),
        ]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    async def answers(self) -> None:
        """Wait until the server takes connections."""
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.args.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def run(self, tokens: list[str]) -> None:
        self.start()
        await self.answers()
        people = [Person(self, n, token) for n, token in enumerate(tokens)]
        for person in people:
            await person.begin()
        self.began = time.monotonic() + 0.5
        killing = asyncio.create_task(self.kill())
        await asyncio.gather(*(person.vote_all() for person in people))
        await killing
        self.stop(signal.SIGTERM)

    def stop(self, how: signal.Signals) -> None:
        assert self.server is not None
        times = psutil.Process(self.server.pid).cpu_times()
        self.processor += times.user + times.system
        os.kill(self.server.pid, how)
        self.server.wait()

    async def kill(self) -> None:
        for n in range(self.args.kills):
            at = self.began + (n + 1) * self.args.seconds / (self.args.kills + 1)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            begin = time.monotonic()
            self.stop(signal.SIGKILL)
            self.start()
            await self.answers()
            self.windows.append((begin, time.monotonic() + SETTLED))

    def report(self) -> int:
        """Print what was measured; returns 0 where nothing was lost or said twice."""
        steady = sorted(one.done - one.due for one in self.acknowledged if not self._in_window(one))
        everything = sorted(one.done - one.due for one in self.acknowledged)
        away = ", ".join(f"{(end - begin - SETTLED) * 1000:.0f}" for begin, end in self.windows)
        print(f"votes acknowledged: {len(self.acknowledged)} of {int(self.args.rate * self.args.seconds)} due")
        print(f"kills: {len(self.windows)}; ms until connections were taken again: {away}; sent again: {self.again}")
        print(f"latency outside restarts, ms: {_quantiles(steady)} ({len(steady)} votes)")
        print(f"latency of all, ms: {_quantiles(everything)}")
        print(f"processor time of the server, with its starts: {1000 * self.processor / len(everything):.1f} ms a vote")
        print(f"load average: {' '.join(f'{one:.1f}' for one in os.getloadavg())} on {os.cpu_count()} processors")
        lost, changed, twice = self._compare()
        print(f"lost: {lost}; other than sent: {changed}; twice: {twice}")
        return 0 if not (lost or changed or twice) else 1

    def _in_window(self, one: Acknowledged) -> bool:
        return any(one.due <= end and one.done >= begin for begin, end in self.windows)

    def _compare(self) -> tuple[int, int, int]:
        store = Store.open(self.path)
        events = [event for event in store.events() if event["kind"] == "vote"]
        by_id = {event["id"]: event for event in events}
        lost = sum(one.event not in by_id for one in self.acknowledged)
        kept = [(one, by_id[one.event]) for one in self.acknowledged if one.event in by_id]
        changed = sum(
            (event["request_id"], event["item_id"], json.loads(event["ranks"])) != (one.request, one.item, one.ranks)
            for one, event in kept
        )
        twice = len(events) - len({(event["annotator_id"], event["request_id"]) for event in events})
        store.close()
        return lost, changed, twice


@dataclass
class Person:
    """An annotator with one connection, which is opened again when it breaks."""

    load: Load
    number: int
    token: str
    task: dict[str, Any] = field(default_factory=dict)
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def begin(self) -> None:
        self.task = (await self.ask("/api/next", {}))["task"]

    async def vote_all(self) -> None:
        args = self.load.args
        draw = random.Random(self.number)
        for n in range(self.number, int(args.rate * args.seconds), args.annotators):
            due = self.load.began + n / args.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task, ranks = self.task, draw.choice(([1, 2], [2, 1], [1, 1]))
            request = f"{self.number}-{n}"
            said = {"item": task["item"], "order": task["order"], "ranks": ranks, "all_bad": False, "note": "",
                    "seconds": 0.5, "request": request}  # fmt: skip
            answer = await self.ask("/api/vote", said)
            by_response = [ranks[task["order"].index(response)] for response in range(2)]
            self.load.acknowledged.append(
                Acknowledged(due, time.monotonic(), request, answer["event"], task["item"], by_response)
            )
            self.task = answer["task"]

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer; a request that fails, or is refused as too many, is sent again until it is answered."""
        while True:
            try:
                status, answer = await asyncio.wait_for(self._once(path, json.dumps(body).encode()), 10)
                if status == 200:
                    return answer
                if status not in (429, 500, 503):
                    raise SystemExit(f"{path} was answered {status}: {answer}")
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                self.streams = None
            self.load.again += 1
            await asyncio.sleep(0.05)

    async def _once(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        port = self.load.args.port
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = self.streams
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
            f"Cookie: rlhf_fast_{port}={self.token}\r\nX-CSRF-Token: {csrf_token(self.token)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))


def _quantiles(latencies: list[float]) -> str:
    if not latencies:
        return "none"
    at = {name: latencies[min(len(latencies) - 1, int(share * len(latencies)))] for name, share in
          (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))}  # fmt: skip
    return ", ".join(f"{name} {1000 * value:.1f}" for name, value in at.items())


if __name__ == "__main__":
    sys.exit(main())
