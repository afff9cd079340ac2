"""`decode_attention` as a torch op: no gradient flows."""

from __future__ import annotations

from rlhf_kernels import backends
from rlhf_kernels.decode_attention import reference, triton
from rlhf_kernels.library import define

backends.register("decode_attention", "triton", triton.decode_attention, triton.supports)
backends.register("decode_attention", "reference", reference.decode_attention)

decode_attention = define(
    "decode_attention(Tensor q, Tensor keys, Tensor values, Tensor lengths, float scale, int? window, float? softcap, "
    "str? backend) -> Tensor",
    fake=lambda args: args["q"].new_empty(args["q"].shape),
)
