"""`sample` as a torch op: no gradient flows."""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define
from rlhf_kernels.precision import accumulation_dtype
from rlhf_kernels.sample import native, reference, triton

backends.register("sample", "native", native.sample, native.supports)
backends.register("sample", "triton", triton.sample, triton.supports)
backends.register("sample", "reference", reference.sample)


def _fake(args: Arguments) -> tuple[Tensor, Tensor]:
    hidden = args["hidden"]
    rows = hidden.shape[0]
    return args["seeds"].new_empty(rows), hidden.new_empty(rows, dtype=accumulation_dtype(hidden, args["weight"]))


sample = define(
    "sample(Tensor hidden, Tensor weight, Tensor? bias, float? softcap, float temperature, Tensor seeds, Tensor steps, "
    "str? backend) -> (Tensor, Tensor)",
    fake=_fake,
)
