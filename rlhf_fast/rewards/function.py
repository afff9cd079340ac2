"""A Python function as a reward (which arguments it is called with, and what it may return), and ready-made rules."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_fast.rewards.retrying import awaited
from rlhf_fast.rewards.source import RewardBatch, check_scores
from rlhf_fast.runtime.errors import UsageError

RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
_TEXTS = ("prompts", "responses")
_TRL = ("prompts", "completions", "completion_ids")
_ON_REQUEST = ("messages", "response_ids", "completion_ids")
_CALL = "It is called as function(prompts, responses, **columns) and returns a list of numbers."


@dataclass
class FunctionReward:
    """Calls `function(prompts, responses, **columns)`, which returns one number for each response.

    Other arguments: see the head of this file. None for a response leaves it out: it adds nothing to the weighted sum,
    as in TRL, and is NaN in `score`. A function may be `async`: it is awaited, with the whole batch.
    """

    name: str
    function: RewardFunction
    may_skip: ClassVar[bool] = True

    def check_signature(self, columns: Iterable[str]) -> None:
        """Raise `UsageError` if the function could not be called with these columns; it is not called."""
        names = list(columns)
        try:
            _arguments(self.function, names)
        except TypeError as error:
            given = f" The data's columns are {', '.join(names)}." if names else ""
            raise UsageError(
                f"the reward function {self.name!r} cannot be called: {error}. {_CALL}{given} Add **columns to take "
                f"columns that it does not use; rename a column called {', '.join((*_TEXTS, *_ON_REQUEST[:2]))}."
            ) from error

    def score(self, batch: RewardBatch) -> Tensor:
        """(B,) f32 on the CPU, NaN where the function gave None. Raises `UsageError` if it fails, `StepFailed` for a
        number that is not finite."""
        try:
            scores = self._call(batch)
            skipped = torch.zeros(len(batch), dtype=torch.bool)
            if isinstance(scores, (list, tuple)) and any(score is None for score in scores):
                skipped = torch.tensor([score is None for score in scores])
                scores = [0.0 if score is None else score for score in scores]
            numbers = torch.as_tensor(scores, dtype=torch.float32).detach().cpu()
        except Exception as error:
            raise UsageError(f"the reward function {self.name!r} failed: {told(error)} {_CALL}") from error
        check_scores(self.name, numbers, batch)
        return numbers.masked_fill(skipped, torch.nan)

    def _call(self, batch: RewardBatch) -> Any:
        by_position, by_name = _arguments(self.function, batch.columns)
        values = _values(batch, as_messages="completions" in by_name)
        missing = [name for name in by_name if values[name] is None]
        if missing:
            raise UsageError(f"it takes {missing[0]}, and this batch has none")
        scores = self.function(
            *(values[name] for name in by_position), **{name: values[name] for name in by_name}, **batch.columns
        )
        return awaited(scores) if inspect.isawaitable(scores) else scores


def told(error: BaseException) -> str:
    """A sentence on the error, and one on its place in the user's code, if it was raised there."""
    ours = {Path(__file__).parent, Path(inspect.__file__).parent / "importlib"}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    place = ""
    if frames and Path(frames[-1].filename).parent not in ours and not isinstance(error, SyntaxError):
        place = f" Raised in {Path(frames[-1].filename).name}, line {frames[-1].lineno}."
    return f"{type(error).__name__}: {error}.{place}"


def _values(batch: RewardBatch, *, as_messages: bool) -> dict[str, list[Any] | None]:
    """All that a function can take beside the columns; messages are copies."""
    messages = [None if turns is None else [dict(turn) for turn in turns] for turns in batch.conversations]
    prompts: list[Any] = list(batch.prompts)
    if as_messages:
        prompts = [text if turns is None else turns for text, turns in zip(prompts, messages, strict=True)]
    completions = [
        text if turns is None else [{"role": "assistant", "content": text}]
        for text, turns in zip(batch.responses, messages, strict=True)
    ]
    ids = batch.response_ids
    return {
        "prompts": prompts, "responses": list(batch.responses), "completions": completions, "messages": messages,
        "response_ids": ids, "completion_ids": ids,
    }  # fmt: skip


def _arguments(function: RewardFunction, columns: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is passed by position, and what by name beside the columns. Raises `TypeError` for what cannot be called."""
    names = set(columns)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-ins do not tell
        return _TEXTS, ()
    by_position, by_name = _chosen(signature.parameters, names)
    if twice := sorted(names & set(by_name)):
        raise TypeError(f"got multiple values for argument {twice[0]!r}, as the data has a column of that name")
    signature.bind(*([] for _ in by_position), **{name: [] for name in (*by_name, *names)})
    return by_position, by_name


def _chosen(parameters: Mapping[str, inspect.Parameter], columns: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kinds = inspect.Parameter
    named = {name for name, p in parameters.items() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    any_name = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    if {"responses", "completions"} <= named:
        raise TypeError("it takes both responses and completions, which are the same; name one of them")
    if "completions" in named:
        offered = dict.fromkeys((*_TRL, *_ON_REQUEST))
        return (), tuple(name for name in offered if name in named or (any_name and name in _TRL))
    on_request = tuple(name for name in _ON_REQUEST if name in named)
    first, second = [*parameters, "", ""][:2]
    unknown_first = first not in ("prompts", *columns, *_ON_REQUEST)
    if "responses" in named and not (second == "responses" and unknown_first):
        return (), (*(name for name in _TEXTS if name in named), *on_request)
    if "prompts" in named and first != "prompts":
        raise TypeError("which argument takes the responses cannot be told; name it responses")
    return _TEXTS, on_request


@dataclass
class ForbiddenPhrases:
    """-1 for each forbidden phrase that a response contains (whole words, any case), else 0."""

    phrases: list[str]
    name: str = "forbidden_phrases"

    def __post_init__(self) -> None:
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise UsageError(f"forbidden phrases are {self.phrases!r}; expected a list of non-empty phrases.")
        self.patterns = [re.compile(rf"(?<!\w){re.escape(p)}(?!\w)", re.IGNORECASE) for p in self.phrases]

    def score(self, batch: RewardBatch) -> Tensor:
        return torch.tensor([-float(sum(bool(p.search(r)) for p in self.patterns)) for r in batch.responses])


@dataclass
class LengthWithin:
    """0 for a response of `least` to `most` words; minus the share by which it misses the nearer bound otherwise."""

    least: int
    most: int
    name: str = "length"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most == 0:
            raise UsageError(
                f"length bounds are {self.least}..{self.most} words; expected 0 <= least <= most, most > 0."
            )

    def score(self, batch: RewardBatch) -> Tensor:
        return torch.tensor([-self._miss(len(response.split())) for response in batch.responses])

    def _miss(self, words: int) -> float:
        if words < self.least:
            return (self.least - words) / self.least
        return max(0, words - self.most) / self.most
