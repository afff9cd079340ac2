"""A comparison page that is served by a thread of the test, and items to put on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from rlhf_fast.annotate.app import Application, bound, link, server_config
from rlhf_fast.annotate.items import Item, make_item
from rlhf_fast.annotate.security import Limits, csrf_token
from rlhf_fast.annotate.store import Store

CODE = "def double(x):\n    return 2 * x  # twice"


def pairs(count: int) -> list[Item]:
    """Items of two responses each; the first is the better one, and says so."""
    return [
        make_item(
            [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"Question **{n}**?"}],
            [f"Good answer {n}.\n\n```python\n{CODE}\n```", f"Bad answer {n}."],
            [{"model": "hidden-model-a"}, {"model": "hidden-model-b"}],
        )
        for n in range(count)
    ]


@dataclass
class Live:
    app: Application
    store: Store
    port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def link(self, token: str) -> str:
        return link("127.0.0.1", self.port, token)

    def client(self, token: str | None = None, **headers: str) -> httpx.Client:
        """What a browser of whoever has the token sends with every request."""
        sent = {"origin": self.origin}
        if token:
            sent |= {"cookie": f"rlhf_fast_{self.port}={token}", "x-csrf-token": csrf_token(token)}
        return httpx.Client(
            base_url=self.origin, headers=sent | headers, trust_env=False, verify=False
        )  # no certificates to load


@contextmanager
def live(store: Store, limits: Limits | None = None) -> Iterator[Live]:
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        app = Application(store, "127.0.0.1", port, limits=limits)
        server = uvicorn.Server(server_config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Live(app, store, port)
        finally:
            server.should_exit = True
            server.force_exit = True
            thread.join()
            app.close()
