"""The pages that SFT and PPO leave in `report.html`: the run, its curves, and rows or responses to look at."""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import Encoded
from rlhf_fast.report.page import REPORT_FILE, run_report
from rlhf_fast.report.sections import learnt_text, prompt_block, response_block
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.rollout_log import ROLLOUTS_FILE
from rlhf_kernels import IGNORED

SHOWN = 4  # rows, or responses of a kind
LONGEST = 2000  # characters of a text; what is in the middle of a longer one is left out


def write_sft_page(
    output: Path, facts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], *,
    held_out: bool,
) -> Path:  # fmt: skip
    """The page of SFT, with the first of `rows`: the held-out ones, or those that were learnt. Returns its path."""
    report = run_report(output.name, "Supervised fine-tuning.", facts, read_metrics(output))
    texts = [learnt_text(_parts(tokenizer, row)) for row in rows[:SHOWN]]
    note = "As the model reads them, special tokens included. What is marked "
    note += "would be learnt in training, and the held-out loss is its." if held_out else "is learnt."
    report.add("Held-out rows" if held_out else "Rows", "".join(texts), note)
    return report.write(output / REPORT_FILE)


def write_ppo_page(output: Path, facts: Mapping[str, str]) -> Path:
    """The page of PPO, with responses out of rollouts.jsonl where that was kept. Returns its path."""
    report = run_report(output.name, "PPO against a reward.", facts, read_metrics(output))
    log = output / ROLLOUTS_FILE
    if log.is_file():
        samples = Samples.read(log)
        parts = [f"<h3>{title}</h3>{''.join(map(_response, rows))}" for title, rows in samples.sections()]
        note = "What the policy said in training. Scores hold every penalty but that for the KL, which is in nats."
        report.add("Responses", "".join(parts), note)
    else:
        report.add("Responses", '<p class="empty">None were kept: log_rollouts is off.</p>')
    return report.write(output / REPORT_FILE)


@dataclass
class Samples:
    """Of the rows of a rollouts.jsonl: the first and the last in its order, the best and the worst by score."""

    first: list[dict[str, Any]] = field(default_factory=list)
    last: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=SHOWN))
    best: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Samples:
        """Reads line by line, and keeps only what is shown."""
        samples = cls()
        high: list[tuple[float, int, dict[str, Any]]] = []  # heaps
        low: list[tuple[float, int, dict[str, Any]]] = []
        for number, row in enumerate(_rows(path)):
            if number < SHOWN:
                samples.first.append(row)
            samples.last.append(row)
            if row["score"] is not None:
                for heap, sign in ((high, 1), (low, -1)):
                    entry = (sign * row["score"], -number, row)
                    (heapq.heappush if len(heap) < SHOWN else heapq.heappushpop)(heap, entry)
        samples.best, samples.worst = ([row for *_, row in sorted(heap, reverse=True)] for heap in (high, low))
        return samples

    def sections(self) -> list[tuple[str, Sequence[dict[str, Any]]]]:
        return [
            ("First", self.first), ("Last", list(self.last)), ("Best by score", self.best),
            ("Worst by score", self.worst),
        ]  # fmt: skip


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _response(row: dict[str, Any]) -> str:
    measured = {"score": row["score"], "KL": row["kl"]}
    chips = {name: value for name, value in measured.items() if value is not None}
    chips |= row["scores"] if len(row["scores"]) > 1 else {}
    name = f"iteration {row['iteration']}, {row['length']} tokens" + (
        "" if row["finished"] else ", cut off by the budget"
    )
    response = response_block(name, _shortened(row["response"]), chips)
    return f'<article>{prompt_block(_shortened(row["prompt"]))}<div class="pair one">{response}</div></article>'


def _parts(tokenizer: PreTrainedTokenizerBase, row: Encoded) -> list[tuple[str, bool]]:
    """The text of a row in parts that are learnt and not learnt."""
    parts, end, before = [], 0, ""
    for learnt, run in groupby(label != IGNORED for label in row.labels):
        end += len(list(run))
        text = str(tokenizer.decode(row.input_ids[:end]))  # whole, as a decoder may drop the space that opens a part
        parts.append((_shortened(text.removeprefix(before)), learnt))
        before = text
    return parts


def _shortened(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} \N{HORIZONTAL ELLIPSIS} {text[-half:]}"
