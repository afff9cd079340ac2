"""A reward of your own behind an address, which PPO asks: python examples/reward_endpoint.py

rlhf-fast ppo --reward_funcs endpoint:http://127.0.0.1:8000/ ...

Put your judge in `score`: a model, a service, a rule. It is sent what the policy was asked, as the text that it saw and
as messages (None where the row is plain text), what it answered, and the data's other columns by name; it gives a
number for each answer. Whoever reaches the port can ask it, so it listens on this machine only.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LONGEST = 64 << 20  # bytes of a question


def score(prompts: list[str], responses: list[str], messages: list[Any], columns: dict[str, list[Any]]) -> list[float]:
    """Short answers that say sorry, and what the data's column `wanted` has, where there is one."""
    wanted = columns.get("wanted", [None] * len(responses))
    return [
        ("sorry" in response.lower()) + bool(word and word in response) - len(response.split()) / 100
        for response, word in zip(responses, wanted, strict=True)
    ]


class Judge(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if size > LONGEST:
            self.send_error(413)
            return
        answer = json.dumps({"scores": score(**json.loads(self.rfile.read(size)))}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    with ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Judge) as server:
        print(f"judging at http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()
