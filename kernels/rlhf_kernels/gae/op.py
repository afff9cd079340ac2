"""`gae_` as a torch op: it mutates `rewards`, and no gradient flows."""

from __future__ import annotations

import torch

from rlhf_kernels import backends
from rlhf_kernels.checks import check_offsets
from rlhf_kernels.gae import native, reference, triton
from rlhf_kernels.library import define

backends.register("gae_", "native", native.gae_, native.supports)
backends.register("gae_", "triton", triton.gae_, triton.supports)
backends.register("gae_", "reference", reference.gae_)

gae_ = define(
    "gae_(Tensor(a!) rewards, Tensor values, Tensor cu_responses, float gamma, float lam, Tensor? bootstrap, "
    "str? backend) -> Tensor",
    fake=lambda args: torch.empty_like(args["values"]),
    check=lambda args: check_offsets("cu_responses", args["cu_responses"], args["rewards"].shape[0]),
)
