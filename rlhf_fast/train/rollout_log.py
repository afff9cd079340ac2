"""Every response that PPO trains on, as a line of `rollouts.jsonl`, written before the update that it is used for."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.rewards.source import Scores, response_texts
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.checkpoint import State
from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.runtime.files import Lines
from rlhf_fast.train.ppo_metrics import per_response

ROLLOUTS_FILE = "rollouts.jsonl"
logger = logging.getLogger(__name__)


class RolloutLog:
    """The file, as a context manager and a part of a run: a resumed one goes on where the checkpoint was written, and
    what came later is cut off. `enabled=False` writes nothing, nor does any process but 0. special_tokens: whether
    responses are written with theirs, as rewards read them."""

    def __init__(self, folder: Path, *, enabled: bool, special_tokens: bool = False) -> None:
        self.path, self.enabled, self.special_tokens = folder / ROLLOUTS_FILE, enabled, special_tokens
        self.kept = 0  # bytes of iterations before this process
        self.lines: Lines | None = None

    def __enter__(self) -> RolloutLog:
        if not is_main():
            return self
        if self.enabled:
            self.lines = Lines(self.path, keep=self.kept)
        elif not self.kept:
            self.path.unlink(missing_ok=True)  # an earlier run's
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lines is not None:
            self.lines.close()

    def record(self, iteration: int, rollout: Rollout, scores: Scores, tokenizer: PreTrainedTokenizerBase) -> None:
        """A line for each response (`rollout_rows`). Raises `NotWritten` if the disk refuses."""
        if self.lines is None:
            return
        lengths = rollout.prompt_lengths.tolist()
        ids = [sequence[:length] for sequence, length in zip(rollout.sequences(), lengths, strict=True)]
        responses = response_texts(
            tokenizer, rollout.responses(), rollout.finished.tolist(), special_tokens=self.special_tokens
        )
        rows = rollout_rows(
            rollout, scores, iteration=iteration, prompts=tokenizer.batch_decode(ids), responses=responses
        )
        self.write(rows)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Raises `NotWritten` if the disk refuses."""
        if self.lines is not None:
            self.lines.append(rows)

    def state(self) -> State:
        return State(facts={"bytes": self.kept if self.lines is None else self.lines.sync()})

    def load_state(self, state: State) -> None:
        if not is_main():
            return
        wanted, there = state.facts["bytes"], self.path.stat().st_size if self.path.exists() else 0
        if there < wanted:
            logger.warning(
                "%s holds %d of the %d bytes that it had: earlier rollouts are gone", self.path, there, wanted
            )
        self.kept = min(wanted, there)
        if self.lines is not None:
            self.lines.cut(self.kept)


def rollout_rows(
    rollout: Rollout, scores: Scores, *, iteration: int, prompts: list[str], responses: list[str]
) -> list[dict[str, Any]]:
    """A row for each of B responses. iteration: from 1, as in the metrics; prompts, responses: their texts (B).

    score: what PPO maximises beside the KL, penalties included; scores: each reward's own, unweighted; kl: the sum over
    the response in nats; length: tokens of the response. A number that is not finite is None.
    """
    kl, lengths = per_response(rollout.kl, rollout).tolist(), map(len, rollout.responses())
    own = {name: values.tolist() for name, values in scores.parts.items()}
    columns = zip(
        rollout.prompt_rows.tolist(), rollout.seeds.tolist(), prompts, responses, scores.total.tolist(), kl, lengths,
        rollout.finished.tolist(), strict=True,
    )  # fmt: skip
    names = ("prompt_row", "seed", "prompt", "response", "score", "kl", "length", "finished")
    rows = []
    for b, values in enumerate(columns):
        row = {"iteration": iteration, **dict(zip(names, values, strict=True))}
        rows.append(row | {"scores": {name: _finite(score[b]) for name, score in own.items()}})
        rows[-1] |= {name: _finite(rows[-1][name]) for name in ("score", "kl")}
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
