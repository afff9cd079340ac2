"""`Packed`: sequences side by side, and the positions whose hidden state is read. What a forward of a role takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_fast.runtime.errors import UsageError
from rlhf_kernels import IGNORED
from rlhf_kernels.checks import to_device

if TYPE_CHECKING:
    from rlhf_fast.model.shared import SharedModel
    from rlhf_fast.model.trunk import TrunkStates

SPARE = -1
"""The number of a sequence of one token that is only run to keep in step with other processes."""


@dataclass
class Packed:
    """tokens (T,) int64 of B sequences with offsets cu_seqlens (B+1); rows (R,) int64 are the indices into tokens
    whose hidden state is read; labels (R,) int64 the token that each of them predicts, -100 for none; scored, how many
    of them are not -100."""

    tokens: Tensor
    cu_seqlens: list[int]
    rows: Tensor
    labels: Tensor
    scored: int
    numbers: list[int] | None = None  # of the sequences among those whose trunk is kept (`TrunkCache`), if they are
    trunk: TrunkStates | None = None  # of the same tokens, where they have been computed for these alone
    policy_hidden: Tensor | None = None  # (R, H) the policy's states at rows, for a critic that reads them
    ref_hidden: Tensor | None = None  # (R, H) the reference's

    @classmethod
    def from_sequences(
        cls, sequences: list[list[int]], labels: list[list[int]] | None = None, device: torch.device | str = "cpu"
    ) -> Packed:
        """Pack sequences. labels[b][t] != -100 marks token t as one to be predicted, from position t-1.

        Without labels nothing is predicted and the last position of each sequence is read. Raises `UsageError` for a
        sequence without tokens.
        """
        cu = [0]
        rows: list[int] = []
        targets: list[int] = []
        for b, sequence in enumerate(sequences):
            if not sequence:
                raise UsageError(f"sequence {b} is empty; a model needs at least one token. Leave such rows out.")
            if labels is None:
                rows.append(cu[-1] + len(sequence) - 1)
                targets.append(IGNORED)
            else:
                marked = [t for t in range(1, len(sequence)) if labels[b][t] != IGNORED]
                rows.extend(cu[-1] + t - 1 for t in marked)
                targets.extend(labels[b][t] for t in marked)
            cu.append(cu[-1] + len(sequence))
        tokens = [token for sequence in sequences for token in sequence]
        scored = 0 if labels is None else len(targets)
        return cls(_int64(tokens, device), cu, _int64(rows, device), _int64(targets, device), scored)

    def sequence_of_rows(self) -> Tensor:
        """(R,) int64: which sequence each of `rows` belongs to."""
        starts = _int64(self.cu_seqlens[1:], self.rows.device)
        return torch.searchsorted(starts, self.rows, right=True)

    def trunk_of(self, model: SharedModel) -> TrunkStates | None:
        """The trunk's states that `model` gave for the same tokens, if there are any."""
        if self.trunk is not None and self.trunk.model is model:
            return self.trunk
        cache = model.trunk_cache
        return None if cache is None or self.numbers is None else cache.states(self.numbers)

    def with_trunk(self, model: SharedModel, sequences: Sequence[Sequence[int]]) -> Packed:
        """Itself, numbered where `model` keeps the trunk of these, its sequences."""
        self.numbers = None if model.trunk_cache is None else model.trunk_cache.numbers(sequences)
        return self


def _int64(values: list[int], device: torch.device | str) -> Tensor:
    return to_device(torch.tensor(values, dtype=torch.int64), device)
