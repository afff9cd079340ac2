"""Log-probs from hidden states on a GPU: a chunk of rows at a time, products by the vendor's library, one row kernel.

A chunk is a product into a float32 buffer that the next chunk uses again, then a kernel that reduces each row; where a
gradient is wanted, the kernel leaves dlogits in the buffer's own memory in the operands' dtype, ready for the second
product. Rows with a label are picked out first: where the caller does not say how many there are, `nonzero` waits for
the device, once a call. float32 operands are multiplied as `torch.backends.cuda.matmul` says, which may be in TF32.

The row kernels are those of `logprobs.triton` or of `logprobs.cuda`, and come as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.logprobs.reference import Arguments, BackwardArguments, PairArguments, scored_rows

RowKernel = Callable[..., None]
"""Of (chunks, labels, u, and the rest by name): reduces each row of u. None stands for what is not wanted."""
SMALL_BUFFER = 256 * 2**20  # bytes of logits: 512 rows at V = 128 K, where a product stops waiting for the weight
LARGE_BUFFER = 2**30  # 2,048 rows there: tiles enough for every processor of a large card


def refusal(a: Any) -> str | None:
    """Why these arguments of an op with hidden states and a weight cannot be taken a chunk at a time, or None."""
    names = [name for name in ("hidden", "ref_hidden", "weight", "ref_weight") if getattr(a, name, None) is not None]
    operands: dict[str, Tensor] = {name: getattr(a, name) for name in names}
    dtypes = {x.dtype for x in operands.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        got = ", ".join(f"{name} {x.dtype}" for name, x in operands.items())
        return f"got {got}, and it takes bfloat16, float16 or float32, the same for all"
    if a.bias is not None and a.bias.dtype == torch.float64:
        return "bias is float64, and it adds in float32"
    if a.hidden.is_cuda and dtypes != {torch.float32} and "dtype_out" not in torch.ops.aten.mm.overloads():
        return f"torch {torch.__version__} has no product of {a.hidden.dtype} into float32; it came with 2.8"
    for name in ("weight", "ref_weight"):
        if name in operands and 1 not in operands[name].stride():
            return f"neither rows nor columns of {name} are contiguous; call .contiguous() on it first"
    return None


@torch.no_grad()
def linear_logprobs(a: Arguments, score: RowKernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprobs (N,), entropy (N,) or (0,), statistics (2, N), directions (N, H) or (0, H); all float32.

    The statistics are the largest logit and log sum e^(z - largest). A direction is the gradient of a log-prob by its
    hidden row: (1 - p_y) f_y W_y - sum over v != y of p_v f_v W_v, f = dz/du; the first term is added in float32,
    apart from the product. Rows that are not scored are 0 everywhere. Arguments are taken as checked and supported.
    """
    chunks = Chunks.of(a)
    columns = {name: chunks.column() for name in ("logprobs", "entropy", "largest", "log_sum")}
    pull = chunks.column()
    moved = a.hidden.new_zeros(a.hidden.shape if a.directions else (0, a.hidden.shape[1]), dtype=torch.float32)
    with torch.autocast(a.hidden.device.type, enabled=False):
        for part, rows, u in chunks:
            product(a.hidden[rows], a.weight.t(), out=u)
            gradient = over(u, a.hidden.dtype) if a.directions else None
            outputs = {name: column[part] for name, column in columns.items()}
            labels = a.labels[rows].contiguous()
            score(chunks, labels, u, **outputs, gradient=gradient, pull=pull[part] if a.directions else None)
            if gradient is not None:
                own = a.weight[labels].float().mul_(pull[part, None])
                moved[rows] = own.sub_(product(gradient, a.weight))
    logprobs, entropies, *statistics = (chunks.scatter(column) for column in columns.values())
    return logprobs, entropies if a.entropy else entropies.new_empty(0), torch.stack(statistics), moved


@torch.no_grad()
def linear_logprobs_backward(a: BackwardArguments, gradient: RowKernel) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden, d_weight or (0,), d_bias or (0,), each in the dtype of what it is the gradient of.

    The logits are computed again. A gradient from above that is None counts as 0, and entropy is then not read. The
    gradients of weight and bias are summed over chunks in float32. Arguments are taken as checked and supported.
    """
    chunks = Chunks.of(a)
    zeros = torch.zeros_like(a.logprobs)
    columns = {
        "logprobs": a.logprobs,
        "entropy": zeros if a.d_entropy is None else a.entropy,
        "largest": a.statistics[0],
        "log_sum": a.statistics[1],
        "d_logprobs": zeros if a.d_logprobs is None else a.d_logprobs,
        "d_entropy": zeros if a.d_entropy is None else a.d_entropy,
    }
    d_hidden = torch.zeros_like(a.hidden, memory_format=torch.contiguous_format)
    d_weight = a.weight.new_zeros(a.weight.shape if a.weight_gradient else 0, dtype=torch.float32)
    d_bias = a.weight.new_zeros(a.weight.shape[0] if a.bias_gradient else 0, dtype=torch.float32)
    with torch.autocast(a.hidden.device.type, enabled=False):
        for _, rows, u in chunks:
            product(a.hidden[rows], a.weight.t(), out=u)
            d_u = over(u, a.hidden.dtype)
            scores = {name: column[rows].contiguous() for name, column in columns.items()}
            gradient(chunks, a.labels[rows].contiguous(), u, **scores, gradient=d_u)
            d_hidden[rows] = torch.mm(d_u, a.weight)
            if a.weight_gradient:
                add_product(d_weight, d_u, a.hidden[rows])
            if a.bias_gradient:
                d_bias += d_u.sum(0, dtype=torch.float32)
    return d_hidden, d_weight.to(a.weight.dtype), d_bias if a.bias is None else d_bias.to(a.bias.dtype)


@torch.no_grad()
def policy_reference_logprobs(a: PairArguments, compare: RowKernel) -> tuple[Tensor, Tensor, Tensor]:
    """logprobs (N,), ref_logprobs (N,), kl (N,) or (0,); float32. There are two buffers of logits.

    Arguments are taken as checked and supported.
    """
    ref_weight = a.weight if a.ref_weight is None else a.ref_weight
    chunks = Chunks.of(a)
    columns = {name: chunks.column() for name in ("logprobs", "ref_logprobs", "kl")}
    buffer = torch.empty_like(chunks.buffer)
    with torch.autocast(a.hidden.device.type, enabled=False):
        for part, rows, u in chunks:
            ref_u = buffer[: len(u)]
            product(a.hidden[rows], a.weight.t(), out=u)
            product(a.ref_hidden[rows], ref_weight.t(), out=ref_u)
            outputs = {name: column[part] for name, column in columns.items()}
            compare(chunks, a.labels[rows].contiguous(), u, ref_u=ref_u, **outputs)
    logprobs, ref_logprobs, kl = (chunks.scatter(column) for column in columns.values())
    return logprobs, ref_logprobs, kl if a.exact_kl else kl.new_empty(0)


class Chunks(NamedTuple):
    """The scored rows, the buffer that a chunk of them fills, and what every row kernel is told."""

    rows: Tensor | None  # (n,) int64: which of the N rows have a label; None: all of them
    scored: int  # n
    total: int  # N
    buffer: Tensor  # (rows of a chunk, V) float32
    bias: Tensor | None  # (V,) float32
    temperature: float
    softcap: float | None

    @classmethod
    def of(cls, a: Arguments | BackwardArguments | PairArguments) -> Chunks:
        total = a.labels.numel()
        rows = None if a.scored == total else scored_rows(a.labels, a.scored)
        count = total if rows is None else len(rows)
        height = min(count, chunk_rows(a.weight.shape[0], buffer_bytes(a.hidden.device)))
        buffer = a.hidden.new_empty(height, a.weight.shape[0], dtype=torch.float32)
        bias = None if a.bias is None else a.bias.float().contiguous()
        return cls(rows, count, total, buffer, bias, a.temperature, a.softcap)

    def __iter__(self) -> Iterator[tuple[slice, Tensor | slice, Tensor]]:  # type: ignore[override]
        """For each chunk its place among the scored rows, its rows among all, and its part of the buffer."""
        height = max(1, len(self.buffer))
        for start in range(0, self.scored, height):
            part = slice(start, min(start + height, self.scored))
            yield part, part if self.rows is None else self.rows[part], self.buffer[: part.stop - start]

    def column(self) -> Tensor:
        """One float32 for each scored row."""
        return self.buffer.new_empty(self.scored)

    def scatter(self, column: Tensor) -> Tensor:
        """(n,) -> (N,), zero at the rows that are not scored."""
        return column if self.rows is None else column.new_zeros(self.total).index_copy_(0, self.rows, column)


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
