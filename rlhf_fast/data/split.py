"""Splits that keep all rows of one prompt on the same side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from rlhf_fast.data.schema import Comparison, PromptRow, prompt_key
from rlhf_fast.runtime.errors import UsageError

Row = TypeVar("Row", Comparison, PromptRow)


def folds_by_prompt(rows: Sequence[Row], folds: int, seed: int) -> list[list[Row]]:
    """`folds` parts whose numbers of prompts differ by one at most; inside a part the rows keep their order."""
    keys = _shuffled_keys(rows, seed)
    if not 2 <= folds <= len(keys):
        raise UsageError(f"cannot make {folds} folds of {len(keys)} different prompts; expected 2 to that many.")
    fold_of = {key: index % folds for index, key in enumerate(keys)}
    parts: list[list[Row]] = [[] for _ in range(folds)]
    for row in rows:
        parts[fold_of[prompt_key(row.prompt)]].append(row)
    return parts


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, held out): about `fraction` of the prompts held out, at least one on either side, rows in their order."""
    keys = _shuffled_keys(rows, seed)
    if not 0 < fraction < 1 or len(keys) < 2:
        raise UsageError(
            f"cannot hold out {fraction} of {len(keys)} prompts; expected a share in (0, 1) and 2 prompts or more."
        )
    held = set(keys[: min(max(1, round(fraction * len(keys))), len(keys) - 1)])
    train = [row for row in rows if prompt_key(row.prompt) not in held]
    return train, [row for row in rows if prompt_key(row.prompt) in held]


def _shuffled_keys(rows: Sequence[Row], seed: int) -> list[str]:
    """The different prompts, in an order that depends on them and on the seed only."""
    keys = sorted({prompt_key(row.prompt) for row in rows})
    random.Random(seed).shuffle(keys)
    return keys
