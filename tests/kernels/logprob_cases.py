"""Inputs for the tests of the native log-probs, and their exact results in float64 from the formulas alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from rlhf_kernels.logprobs import native, reference

LEVELS = [] if native._missing else native.levels()
needs_native = pytest.mark.skipif(not LEVELS, reason="the C++ extension is not built: install the package from source")
each_level = pytest.mark.parametrize("level", LEVELS or ["none"])
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


class Results(NamedTuple):
    logprobs: np.ndarray
    entropy: np.ndarray
    d_hidden: np.ndarray


class Case(NamedTuple):
    """Arguments of `linear_logprobs` and the gradients that come from above."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    d_logprobs: torch.Tensor
    d_entropy: torch.Tensor
    settings: dict

    def arguments(self):
        defaults = {"bias": None, "temperature": 1.0, "softcap": None}
        return {"weight": self.weight, "labels": self.labels, **defaults, **self.settings}


def case(rows, hidden_size, vocabulary, dtype, *, scale=3.0, skipped=0, seed=0, bias=None, **settings):
    """Random operands whose logits have a standard deviation near `scale`; the first `skipped` labels are -100."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=g).to(dtype)
    weight = (torch.randn(vocabulary, hidden_size, generator=g) * scale / hidden_size**0.5).to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=g)
    labels[:skipped] = -100
    if bias is not None:
        settings["bias"] = bias + torch.randn(vocabulary, generator=g)
    return Case(hidden, weight, labels, *torch.randn(2, rows, generator=g), settings)


def exact(case):
    """The definitions, row by row in float64 without torch: z, log softmax, entropy and their gradients."""
    a = case.arguments()
    temperature, softcap, bias = a["temperature"], a["softcap"], a["bias"]
    weight = case.weight.double().numpy()
    logprobs, entropies, d_hidden = [], [], []
    for h, y, d_lp, d_ent in zip(
        case.hidden.double().numpy(), case.labels, case.d_logprobs, case.d_entropy, strict=True
    ):
        if y < 0:
            logprobs.append(0.0), entropies.append(0.0), d_hidden.append(np.zeros_like(h))
            continue
        z = weight @ h + (0 if bias is None else bias.double().numpy())
        slope = np.ones_like(z) if softcap is None else 1 - np.tanh(z / softcap) ** 2
        z = (z if softcap is None else softcap * np.tanh(z / softcap)) / temperature
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        p, entropy = np.exp(log_p), -(np.exp(log_p) * log_p).sum()
        d_z = -d_lp.item() * p - d_ent.item() * p * (log_p + entropy)
        d_z[y] += d_lp.item()
        logprobs.append(log_p[y]), entropies.append(entropy), d_hidden.append((d_z * slope / temperature) @ weight)
    shape = case.hidden.shape
    return Results(np.array(logprobs), np.array(entropies), np.array(d_hidden).reshape(shape))


def run(case, backend):
    """What a backend's own function gives, gradients included."""
    hidden = case.hidden.clone().requires_grad_()
    out = backend.linear_logprobs(hidden, **case.arguments(), entropy=True)
    ((out.logprobs * case.d_logprobs).sum() + (out.entropy * case.d_entropy).sum()).backward()
    return Results(out.logprobs.detach().numpy(), out.entropy.detach().numpy(), hidden.grad.float().numpy())


def assert_as_accurate_as_torch(case, absolute=2e-6):
    """Error against float64 at most twice that of the reference, plus a small absolute term."""
    expected, torch_result, native_result = exact(case), run(case, reference), run(case, native)
    for name, truth, plain, ours in zip(Results._fields, expected, torch_result, native_result, strict=True):
        error, allowed = abs(ours - truth).max(initial=0), 2 * abs(plain - truth).max(initial=0) + absolute
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
