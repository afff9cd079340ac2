"""A reward behind an HTTP address.

It is sent by POST, with a value in each list for each response,

    {"prompts": [...], "responses": [...], "messages": [...], "columns": {NAME: [...], ...}}

`prompts` are texts as the policy saw them, `messages` the same prompts as messages (null where the row is plain text),
`columns` the data's other columns. It answers `{"scores": [...]}`, a number for each response.

Nothing else is contacted: redirects and proxies are not followed. What it answers is not trusted: JSON of a bounded
size that has to be of this form.
"""

from __future__ import annotations

import http.client
import json
import math
import reprlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import hide_secrets, printable

TIMEOUT = 60.0  # seconds
TOKEN = "RLHF_FAST_REWARD_TOKEN"
"""The environment variable with the token of the endpoints that a config names: it stands in no file and no log."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PIECE = 1 << 16  # bytes
_ROOM, _ROOM_EACH = 1 << 12, 64  # bytes of an answer: at most these, and these for each response


@dataclass
class EndpointReward:
    """Posts prompts, responses, messages and columns to `address` and reads the scores.

    timeout: seconds for a whole answer. token: sent as `Authorization: Bearer TOKEN`. Raises `UsageError` for an
    address that is not http or https or that holds a password, and for a token that would cross a network unencrypted
    or cannot stand in a header.
    """

    address: str = field(repr=False)  # its query may hold a secret
    timeout: float = TIMEOUT
    token: str | None = field(default=None, repr=False)
    url: SplitResult = field(init=False, repr=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = _checked_address(self.address)
        self.name = f"{self.url.netloc}{self.url.path}"
        if self.token is not None:
            _check_token(self.token, self.url)

    def check_columns(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Raise `UsageError` naming the first column that JSON cannot hold."""
        for name, values in columns.items():
            for value in values:
                if not _is_json(value):
                    raise UsageError(
                        f"the column {name!r} holds {reprlib.repr(value)} ({type(value).__name__}), which JSON cannot "
                        f"hold, so it cannot be sent to the reward at {self.address}. Leave the column out of the "
                        "data, or write it as text or finite numbers."
                    )

    def score(self, batch: RewardBatch) -> Tensor:
        """Raises `UsageError` for a column that cannot be sent, and anything but an answer of the form above."""
        self.check_columns(batch.columns)
        body = json.dumps({
            "prompts": batch.prompts, "responses": batch.responses, "messages": batch.conversations,
            "columns": batch.columns,
        })  # fmt: skip
        limit = _ROOM + _ROOM_EACH * len(batch)
        try:
            answer = self._post(body.encode(), limit)
        except (OSError, http.client.HTTPException) as error:
            self._fail(f"{type(error).__name__}: {error}")
        return torch.tensor(self._scores(answer, len(batch)), dtype=torch.float32)

    def _post(self, body: bytes, limit: int) -> bytes:
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname or "", self.url.port, timeout=self.timeout)
        end = time.monotonic() + self.timeout
        try:
            path = (self.url.path or "/") + (f"?{self.url.query}" if self.url.query else "")
            token = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
            connection.request("POST", path, body, {"Content-Type": "application/json"} | token)
            response = connection.getresponse()
            if response.status != 200:
                self._fail(f"status {response.status} {response.reason}; expected 200, redirects are not followed")
            return self._read(response, limit, end)
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse, limit: int, end: float) -> bytes:
        answer = b""
        while piece := response.read1(_PIECE):
            answer += piece
            if len(answer) > limit:
                self._fail(f"its answer is longer than {limit} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {self.timeout:g} s")
        return answer

    def _scores(self, answer: bytes, count: int) -> list[float]:
        try:
            scores: Any = json.loads(answer, parse_constant=_refuse_constant)["scores"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._fail(f"its answer {answer[:80]!r} cannot be read ({type(error).__name__}: {error})")
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            self._fail(f"its scores are {str(scores)[:80]}; expected a list of numbers")
        if len(scores) != count:
            self._fail(f"it gave {len(scores)} scores for {count} responses")
        return scores

    def _fail(self, what: str) -> NoReturn:
        address, what = hide_secrets(self.address), printable(what, keep="")
        raise UsageError(
            f'the reward at {address} failed: {what}. It is sent {{"prompts": [...], "responses": [...], ...}} '
            'and answers {"scores": [...]}, one number for each response.'
        )


def _is_json(value: Any) -> bool:
    """Whether JSON gives the value back: it has no dates, bytes, arrays, NaN, or keys that are not text."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def _checked_address(address: str) -> SplitResult:
    try:
        url = urlsplit(address)
        known = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        known = False
    if not known or not address.isprintable() or " " in address:
        raise UsageError(
            f"the reward address {hide_secrets(address)!r} cannot be used: expected http://HOST:PORT/PATH or https."
        )
    if url.username is not None or url.password is not None:
        raise UsageError(
            "a reward address holds a user name or password, which logs would show: leave it out, and put a token into "
            f"{TOKEN} in the environment."
        )
    return url


def _check_token(token: str, url: SplitResult) -> None:
    if not token or not all("!" <= character <= "~" for character in token):
        raise UsageError("the token of a reward endpoint is empty or has spaces or letters that no header can hold.")
    if url.scheme != "https" and url.hostname not in _LOOPBACK:
        raise UsageError(
            f"a token would be sent to {url.netloc} unencrypted. Give an https address, or leave the token out "
            f"({TOKEN} in the environment)."
        )


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
