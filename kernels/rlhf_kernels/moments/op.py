"""`moments` as a torch op that returns one tensor (3,) f64: count, mean, m2."""

from __future__ import annotations

import torch

from rlhf_kernels import backends
from rlhf_kernels.library import define
from rlhf_kernels.moments import native, reference, triton

backends.register("moments", "native", native.moments, native.supports)
backends.register("moments", "triton", triton.moments, triton.supports)
backends.register("moments", "reference", reference.moments)

moments = define(
    "moments(Tensor x, Tensor? mask, str? backend) -> Tensor",
    fake=lambda args: args["x"].new_empty(3, dtype=torch.float64),
)
