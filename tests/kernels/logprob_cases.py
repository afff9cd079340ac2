"""Inputs for the tests of the native log-probs, and their exact results in float64 from the formulas alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlhf_kernels import extension
from tests.kernels.by_backend import native

LEVELS = extension.native.levels() if extension.native else []
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
        return {"hidden": self.hidden, "weight": self.weight, "labels": self.labels, **defaults, **self.settings}

    def without_d_entropy(self):
        return self._replace(d_entropy=torch.zeros_like(self.d_entropy))


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
        others = np.delete(p, y).sum()  # 1 - p_y, without cancellation
        d_z[y] = d_lp.item() * others - d_ent.item() * p[y] * (log_p[y] + entropy)
        logprobs.append(log_p[y]), entropies.append(entropy), d_hidden.append((d_z * slope / temperature) @ weight)
    shape = case.hidden.shape
    return Results(np.array(logprobs), np.array(entropies), np.array(d_hidden).reshape(shape))


def log_softmax(case, hidden, dtype):
    """Plain torch: (N, V) in `dtype` from the operands as they are."""
    a = case.arguments()
    logits = F.linear(hidden.to(dtype), case.weight.to(dtype), None if a["bias"] is None else a["bias"].to(dtype))
    if a["softcap"] is not None:
        logits = a["softcap"] * torch.tanh(logits / a["softcap"])
    return F.log_softmax(logits / a["temperature"], dim=1)


def plain(case):
    """Plain torch in float32 from operands of the case's dtype, which is also that of d_hidden."""
    hidden = case.hidden.clone().requires_grad_()
    log_p = log_softmax(case, hidden, torch.float32)
    scored = case.labels >= 0
    logprobs = log_p.gather(1, case.labels.clamp(min=0)[:, None]).squeeze(1) * scored
    entropy = -(log_p.exp() * log_p).sum(1) * scored
    ((logprobs * case.d_logprobs).sum() + (entropy * case.d_entropy).sum()).backward()
    return Results(logprobs.detach().numpy(), entropy.detach().numpy(), hidden.grad.float().numpy())


def recomputed(case):
    """The native results, the gradient from a backward pass that computes the logits again."""
    a = case.arguments()
    logprobs, entropy, statistics, _ = native.linear_logprobs(**a, entropy=True, directions=False)
    d_hidden, _, _ = native.linear_logprobs_backward(
        **a,
        logprobs=logprobs,
        entropy=entropy,
        statistics=statistics,
        d_logprobs=case.d_logprobs,
        d_entropy=case.d_entropy,
        weight_gradient=False,
        bias_gradient=False,
    )
    return Results(logprobs.numpy(), entropy.numpy(), d_hidden.float().numpy())


def in_forward(case):
    """The native results, the gradient from the forward pass's directions, which know nothing of `d_entropy`."""
    logprobs, entropy, _, directions = native.linear_logprobs(**case.arguments(), entropy=True, directions=True)
    d_hidden = directions * case.d_logprobs[:, None]
    return Results(logprobs.numpy(), entropy.numpy(), d_hidden.numpy())


each_way = pytest.mark.parametrize("run", [recomputed, in_forward], ids=["recomputed", "in forward"])


def assert_as_accurate_as_torch(case, run, absolute=2e-6):
    """Error against float64 at most twice that of plain torch, plus a small absolute term."""
    case = case.without_d_entropy() if run is in_forward else case
    for name, truth, torchs, ours in zip(Results._fields, exact(case), plain(case), run(case), strict=True):
        error, allowed = abs(ours - truth).max(initial=0), 2 * abs(torchs - truth).max(initial=0) + absolute
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
