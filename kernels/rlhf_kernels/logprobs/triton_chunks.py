"""A chunk of rows at a time: which rows have a label, the buffer of their logits, and products kept in float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.logprobs.reference import IGNORED
from rlhf_kernels.triton_support import Variant

SMALL_BUFFER = 256 * 2**20  # bytes of logits: 512 rows at V = 128 K, where a product stops waiting for the weight
LARGE_BUFFER = 2**30  # 2,048 rows there: tiles enough for every processor of a large card


class Chunks(NamedTuple):
    """The scored rows, the buffer that a chunk of them fills, and what every row kernel is told."""

    rows: Tensor  # (n,) int64: which of the N rows have a label
    labels: Tensor  # (n,)
    total: int  # N
    buffer: Tensor  # (rows of a chunk, V) float32
    bias: Tensor | None  # (V,) float32
    temperature: float
    softcap: float | None

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        temperature: float,
        softcap: float | None,
    ) -> Chunks:
        """Waits for the device: the number of scored rows has to be known."""
        rows = (labels != IGNORED).nonzero().squeeze(1)
        height = min(len(rows), chunk_rows(weight.shape[0], buffer_bytes(hidden.device)))
        buffer = hidden.new_empty(height, weight.shape[0], dtype=torch.float32)
        bias = None if bias is None else bias.float().contiguous()
        return cls(rows, labels[rows], labels.numel(), buffer, bias, temperature, softcap)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:  # type: ignore[override]
        """For each chunk its place among the scored rows, its rows among all, and its part of the buffer."""
        for start in range(0, len(self.rows), max(1, len(self.buffer))):
            part = slice(start, start + len(self.buffer))
            rows = self.rows[part]
            yield part, rows, self.buffer[: len(rows)]

    def given(self) -> dict[str, bool]:
        return {"bias": self.bias is not None, "softcap": self.softcap is not None}

    def column(self) -> Tensor:
        """One float32 for each scored row."""
        return self.buffer.new_empty(len(self.rows))

    def scatter(self, column: Tensor) -> Tensor:
        """(n,) -> (N,), zero at the rows that are not scored."""
        return column.new_zeros(self.total).index_copy_(0, self.rows, column)

    def launch(self, variant: Variant, part: slice, *, u: Tensor, **arguments: Any) -> None:
        """One program for each row of `u`."""
        variant.launch(
            (u.shape[0],),
            u=u,
            labels=self.labels[part],
            bias=self.bias,
            vocabulary=u.shape[1],
            stride=u.stride(0),
            inverse_temperature=1 / self.temperature,
            softcap=self.softcap,
            **arguments,
        )


@cache
def buffer_bytes(device: torch.device) -> int:
    """A 64th of the device's memory at most. Not of what is free: that differs between runs, and so would roundings."""
    if device.type != "cuda":
        return SMALL_BUFFER
    return LARGE_BUFFER if torch.cuda.get_device_properties(device).total_memory >= 64 * LARGE_BUFFER else SMALL_BUFFER


def chunk_rows(vocabulary: int, size: int = SMALL_BUFFER) -> int:
    """Rows of logits that fill a buffer of `size` bytes, in whole tiles of 128 where there is room for one."""
    rows = max(1, size // (4 * vocabulary))
    return rows - rows % 128 if rows > 128 else rows


def over(u: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, V) of `dtype` in the memory of u (n, V) float32: each row at the beginning of u's row."""
    return u.view(dtype)[:, : u.shape[1]]


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b in float32, accumulated and kept there."""
    if a.dtype == torch.float32 or not a.is_cuda:  # CPU: the interpreter's tensors, for which torch has no such product
        return torch.mm(a.float(), b.float(), out=out)
    if out is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b, out_dtype=torch.float32, out=out)


def add_product(d_weight: Tensor, d_u: Tensor, hidden: Tensor) -> None:
    """d_weight (V, H) float32 += d_u^T hidden, a part of the vocabulary at a time, so that the product stays small."""
    rows = max(1, SMALL_BUFFER // (4 * max(1, hidden.shape[1])))
    for block, d_block in zip(d_weight.split(rows), d_u.split(rows, dim=1), strict=True):
        block += product(d_block.t(), hidden)
