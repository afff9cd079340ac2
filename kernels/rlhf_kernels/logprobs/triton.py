"""Log-probs from hidden states on a GPU: a chunk of rows at a time, products by the vendor's library, one row kernel.

A chunk is a product into a float32 buffer that the next chunk uses again, then a Triton kernel that reduces each row;
where a gradient is wanted, the kernel leaves dlogits in the buffer's own memory in the operands' dtype, ready for the
second product. Rows with a label are picked out first: `nonzero` waits for the device, once per call. float32 operands
are multiplied as `torch.backends.cuda.matmul` says, which may be in TF32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.logprobs.triton_chunks import Chunks, add_product, over, product
from rlhf_kernels.triton_support import cannot_run


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of a log-prob operation, or None."""
    reason = cannot_run(args)
    if reason is not None:
        return reason
    operands = {k: args[k] for k in ("hidden", "ref_hidden", "weight", "ref_weight") if args.get(k) is not None}
    dtypes = {x.dtype for x in operands.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        got = ", ".join(f"{name} {x.dtype}" for name, x in operands.items())
        return f"got {got}, and it takes bfloat16, float16 or float32, the same for all"
    if args["bias"] is not None and args["bias"].dtype == torch.float64:
        return "bias is float64, and it adds in float32"
    if args["hidden"].is_cuda and dtypes != {torch.float32} and "dtype_out" not in torch.ops.aten.mm.overloads():
        return f"torch {torch.__version__} has no product of {args['hidden'].dtype} into float32; it came with 2.8"
    for name in ("weight", "ref_weight"):
        if name in operands and 1 not in operands[name].stride():
            return f"neither rows nor columns of {name} are contiguous; call .contiguous() on it first"
    return None


@torch.no_grad()
def linear_logprobs(
    *,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    directions: bool,
    weight_gradient: bool = False,  # plays no part: the backward pass gives it
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprobs (N,), entropy (N,) or (0,), statistics (2, N), directions (N, H) or (0, H); all float32.

    The statistics are the largest logit and log sum e^(z - largest). A direction is the gradient of a log-prob by its
    hidden row: (1 - p_y) f_y W_y - sum over v != y of p_v f_v W_v, f = dz/du; the first term is added in float32,
    apart from the product. Rows that are not scored are 0 everywhere. Arguments are taken as checked and supported.
    """
    from rlhf_kernels.logprobs import triton_kernels as kernels

    chunks = Chunks.of(hidden, weight, labels, bias, temperature, softcap)
    variant = kernels.score(hidden.dtype if directions else None, **chunks.given())
    columns = {name: chunks.column() for name in ("logprobs", "entropy", "largest", "log_sum")}
    pull = chunks.column()
    moved = hidden.new_zeros(hidden.shape if directions else (0, hidden.shape[1]), dtype=torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        for part, rows, u in chunks:
            product(hidden[rows], weight.t(), out=u)
            gradient = over(u, hidden.dtype) if directions else None
            chunks.launch(
                variant,
                part,
                u=u,
                **{name: column[part] for name, column in columns.items()},
                gradient=gradient,
                gradient_stride=None if gradient is None else gradient.stride(0),
                pull=pull[part] if directions else None,
            )
            if gradient is not None:
                own = weight[labels[rows]].float().mul_(pull[part, None])
                moved[rows] = own.sub_(product(gradient, weight))
    logprobs, entropies, *statistics = (chunks.scatter(column) for column in columns.values())
    return logprobs, entropies if entropy else entropies.new_empty(0), torch.stack(statistics), moved


@torch.no_grad()
def linear_logprobs_backward(
    *,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    logprobs: Tensor,
    entropy: Tensor,
    statistics: Tensor,
    d_logprobs: Tensor | None,
    d_entropy: Tensor | None,
    weight_gradient: bool,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden, d_weight or (0,), d_bias or (0,), each in the dtype of what it is the gradient of.

    The logits are computed again. A gradient from above that is None counts as 0, and entropy is then not read. The
    gradients of weight and bias are summed over chunks in float32. Arguments are taken as checked and supported.
    """
    from rlhf_kernels.logprobs import triton_kernels as kernels

    chunks = Chunks.of(hidden, weight, labels, bias, temperature, softcap)
    variant = kernels.gradient(hidden.dtype, **chunks.given())
    zeros = torch.zeros_like(logprobs)
    columns = {
        "logprobs": logprobs,
        "entropy": zeros if d_entropy is None else entropy,
        "largest": statistics[0],
        "log_sum": statistics[1],
        "d_logprobs": zeros if d_logprobs is None else d_logprobs,
        "d_entropy": zeros if d_entropy is None else d_entropy,
    }
    d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    d_weight = weight.new_zeros(weight.shape if weight_gradient else 0, dtype=torch.float32)
    d_bias = weight.new_zeros(weight.shape[0] if bias_gradient else 0, dtype=torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        for part, rows, u in chunks:
            product(hidden[rows], weight.t(), out=u)
            d_u = over(u, hidden.dtype)
            scores = {name: column[rows] for name, column in columns.items()}
            chunks.launch(variant, part, u=u, **scores, gradient=d_u, gradient_stride=d_u.stride(0))
            d_hidden[rows] = torch.mm(d_u, weight)
            if weight_gradient:
                add_product(d_weight, d_u, hidden[rows])
            if bias_gradient:
                d_bias += d_u.sum(0, dtype=torch.float32)
    return d_hidden, d_weight.to(weight.dtype), d_bias if bias is None else d_bias.to(bias.dtype)


@torch.no_grad()
def policy_reference_logprobs(
    *,
    hidden: Tensor,
    ref_hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ref_weight: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    exact_kl: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """logprobs (N,), ref_logprobs (N,), kl (N,) or (0,); float32. There are two buffers of logits.

    Arguments are taken as checked and supported.
    """
    from rlhf_kernels.logprobs import triton_kernels as kernels

    ref_weight = weight if ref_weight is None else ref_weight
    chunks = Chunks.of(hidden, weight, labels, bias, temperature, softcap)
    variant = kernels.compare(**chunks.given())
    columns = {name: chunks.column() for name in ("logprobs", "ref_logprobs", "kl")}
    buffer = torch.empty_like(chunks.buffer)
    with torch.autocast(hidden.device.type, enabled=False):
        for part, rows, u in chunks:
            ref_u = buffer[: len(rows)]
            product(hidden[rows], weight.t(), out=u)
            product(ref_hidden[rows], ref_weight.t(), out=ref_u)
            outputs = {name: column[part] for name, column in columns.items()}
            chunks.launch(variant, part, u=u, ref_u=ref_u, **outputs)
    logprobs, ref_logprobs, kl = (chunks.scatter(column) for column in columns.values())
    return logprobs, ref_logprobs, kl if exact_kl else kl.new_empty(0)
