"""`whiten_` as a torch op: it mutates `x`, and no gradient flows."""

from __future__ import annotations

from rlhf_kernels import backends
from rlhf_kernels.library import define
from rlhf_kernels.whiten import native, reference, triton

backends.register("whiten_", "native", native.whiten_, native.supports)
backends.register("whiten_", "triton", triton.whiten_, triton.supports)
backends.register("whiten_", "reference", reference.whiten_)

whiten_ = define(
    "whiten_(Tensor(a!) x, Tensor? mask, Tensor? moments, bool shift_mean, int ddof, float eps, str? backend) -> ()",
    fake=lambda args: None,
)
