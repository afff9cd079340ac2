"""Sends every operation's launches through Triton's own front end and compiler, for a GPU that is not here.

    python tests/kernels/triton/front_end.py

The interpreter takes a launch's arguments as they come. The real front end binds them by name, compiles absent ones in
and specialises on the others; here it does so for sm_90, and stops before the machine code would be loaded.
"""

from __future__ import annotations

from collections import Counter

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from rlhf_kernels.triton_support import OPTIONS, Variant
from tests.kernels.by_backend import triton
from tests.kernels.triton.logprob_checks import case
from tests.kernels.triton.test_ppo_loss import PLAIN, columns


class NoDevice:
    """As much of a driver as compiling asks for."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


compiled: Counter[str] = Counter()


def compile_only(self, grid, **arguments):
    passed = {name: x for name, x in arguments.items() if x is not None}
    options = {"num_warps": self.num_warps, "num_stages": self.num_stages, **OPTIONS}
    self.kernel.run(**passed, **self.constants, **options, grid=grid, warmup=True)
    compiled[self.name] += 1


driver.set_active(NoDevice())
Variant.launch = compile_only  # type: ignore[method-assign]

x, cu = torch.zeros(64), torch.tensor([0, 64], dtype=torch.int32)
triton.gae_(rewards=x, values=x, cu_responses=cu, gamma=1.0, lam=0.95, bootstrap=None)
triton.shape_rewards_(rewards=x, kl=x, scores=x[:1], score_index=torch.tensor([63]), cu_responses=cu, kl_coef=0.1)
triton.moments(x=x, mask=x > 0)
triton.whiten_(x=x, mask=None, moments=None, shift_mean=True, ddof=1, eps=1e-8)
triton.ppo_loss(**(PLAIN | columns(64)))
triton.ppo_loss(**(PLAIN | columns(64) | {"entropy": x, "weight": x}))
for given in (case(torch.bfloat16, vocabulary=50), case(vocabulary=48, softcap=5.0, bias=True)):
    for directions in (False, True):
        out = triton.linear_logprobs(**given, entropy=True, directions=directions)
    scores = dict(zip(("logprobs", "entropy", "statistics"), out, strict=False))
    gradients = {"d_logprobs": x[:6], "d_entropy": None, "weight_gradient": True, "bias_gradient": True}
    triton.linear_logprobs_backward(**given, **scores, **gradients)
    triton.policy_reference_logprobs(**given, ref_hidden=given["hidden"], ref_weight=None, exact_kl=True)
rows, one = torch.zeros(4, 64), torch.ones(64, 1)
for given, weight in ((rows, torch.ones(64)), (one, torch.ones(1))):  # a width and a stride of 1 are compiled in
    _, rstd = triton.rms_norm(x=given, weight=weight, eps=1e-6)
    for trains in (False, True):
        triton.rms_norm_backward(x=given, weight=weight, rstd=rstd, dy=given, weight_gradient=trains)
for gate in (rows, rows[:, ::2], rows[:, :1]):
    triton.swiglu(gate=gate, up=gate)
    triton.swiglu_backward(gate=gate, up=gate, dy=gate)
for pairs in (1, 16):  # one pair: the strides of the angles are 1
    heads, turn = torch.zeros(4, 3, 2 * pairs), torch.zeros(4, pairs)
    triton.rotary(q=heads, k=heads[:, :1], cos=turn, sin=turn, inverse=False)
for temperature in (0.0, 1.0):
    seeds = torch.arange(6)
    given = {key: value for key, value in case(vocabulary=48).items() if key not in ("labels", "temperature")}
    triton.sample(**given, temperature=temperature, seeds=seeds, steps=seeds)
for heads in (1, 8):  # one head: the size of a group is 1
    keys, lengths = torch.zeros(2, 1, 300, 64), torch.ones(2, dtype=torch.int64)
    settings = {"scale": 1.0, "window": None, "softcap": None}
    triton.decode_attention(q=keys[:, :, 0].repeat(1, heads, 1), keys=keys, values=keys, lengths=lengths, **settings)
print(*(f"{name} {n}" for name, n in compiled.items()), sep=", ")
