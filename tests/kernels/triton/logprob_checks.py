"""Inputs for the tests of log-probs by Triton and CUDA C++, what float64 and plain torch make of them, and checks."""

from __future__ import annotations

import torch

import rlhf_kernels

VOCABULARY = 2 * 2048 + 77  # two blocks of a row kernel and a tail


def case(dtype=torch.float32, *, rows=6, hidden_size=24, vocabulary=VOCABULARY, scale=3.0, seed=0, **settings):
    """Random operands whose logits have a standard deviation near `scale`; every third row is skipped."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=g).to(dtype)
    weight = (torch.randn(vocabulary, hidden_size, generator=g) * scale / hidden_size**0.5).to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=g)
    labels[::3] = -100
    settings = {"bias": None, "temperature": 1.0, "softcap": None} | settings
    if settings["bias"] is True:
        settings["bias"] = torch.randn(vocabulary, generator=g)
    return {"hidden": hidden, "weight": weight, "labels": labels, **settings}


def certain(dtype=torch.float32, *, by=22.0):
    """Rows whose label has a probability of about 1 - 1e-6, by its bias; with less of that, of about 0.9."""
    given = case(dtype, scale=0.5, bias=True)
    given["labels"] = torch.where(given["labels"] < 0, -100, 7)
    given["bias"][7] = by
    return given


CASES = {
    "plain": case(),
    "bf16": case(torch.bfloat16),
    "fp16": case(torch.float16),
    "bias, temperature": case(bias=True, temperature=0.7),
    "softcap": case(softcap=5.0, scale=8.0),
    "softcap, bias, bf16": case(torch.bfloat16, softcap=5.0, scale=8.0, bias=True, temperature=1.3),
    "one block": case(vocabulary=50),
    "whole blocks": case(vocabulary=4096),
    "one token": case(vocabulary=1),
    "huge logits": case(scale=1000.0),
    "all logits negative": case(bias=torch.full((VOCABULARY,), -500.0)),
    "certain": certain(),
    "certain, bf16": certain(torch.bfloat16),
    "likely": certain(by=11.0),
    "banned tokens": case(bias=torch.where(torch.arange(VOCABULARY) % 2 > 0, -torch.inf, 0.0)),
    "no rows": case(rows=0),
    "one skipped row": case(rows=1),
    "strided hidden": {**case(), "hidden": case(hidden_size=48)["hidden"][:, ::2]},
}
CASES["banned tokens"]["labels"] -= CASES["banned tokens"]["labels"] % 2  # -100 stays


def on(device, given):
    return {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in given.items()}


def in_dtype(dtype, given):
    return {k: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in given.items()}


def by_torch(given, dtype, d_logprobs, d_entropy, *, entropy=True):
    """log-probs, entropy, directions, and gradients of hidden, weight and bias: the reference in a dtype."""
    args = in_dtype(dtype, {k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in given.items()})
    leaves = [args[k].requires_grad_() for k in ("hidden", "weight", "bias") if args[k] is not None]
    positional = [args.pop(k) for k in ("hidden", "weight", "labels")]
    out = rlhf_kernels.linear_logprobs(*positional, **args, entropy=entropy, backend="reference")
    (directions,) = torch.autograd.grad(out.logprobs.sum(), leaves[:1], retain_graph=True)
    total = (out.logprobs * d_logprobs.to(dtype)).sum()
    total = total + (out.entropy * d_entropy.to(dtype)).sum() if entropy else total
    gradients = torch.autograd.grad(total, leaves)
    return [out.logprobs.detach(), out.entropy.detach() if entropy else None, directions, *gradients]


def assert_as_accurate_as_torch(name, ours, exact, plain, absolute=2e-6):
    """Error against float64 at most twice that of float32 torch, plus a small absolute term."""
    error = (ours.cpu().double() - exact).abs().max() if exact.numel() else 0.0
    allowed = 2 * (plain.double() - exact).abs().max() + absolute if exact.numel() else 0.0
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def assert_rows_close(name, ours, exact, dtype):
    """Each row to the precision of the operands, relative to that row's own largest entry: tiny rows count as well."""
    tolerance = {torch.float32: 3e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    smallest = 1e-5 if dtype == torch.float16 else 1e-12  # where float16 loses digits, or a row is 0
    error = (ours.cpu().double() - exact).abs().amax(-1)
    allowed = tolerance * exact.abs().amax(-1) + smallest
    assert (error <= allowed).all(), f"{name}: errors {error.tolist()}, allowed {allowed.tolist()}"


def gradients_from_above(given):
    return torch.randn(2, given["hidden"].shape[0], generator=torch.Generator().manual_seed(9))


def check_forward(backend, name, device):
    """A case's log-probs, entropies and directions in a backend beside float64, and zeros where no label is."""
    given = CASES[name]
    args = on(device, given)
    logprobs, entropy, statistics, directions = backend.linear_logprobs(**args, entropy=True, directions=True)
    above = gradients_from_above(given)
    exact, plain = by_torch(given, torch.float64, *above), by_torch(given, torch.float32, *above)
    assert {x.dtype for x in (logprobs, entropy, statistics, directions)} == {torch.float32}
    assert_as_accurate_as_torch("logprobs", logprobs, exact[0], plain[0])
    assert_as_accurate_as_torch("entropy", entropy, exact[1], plain[1])
    skipped = given["labels"] < 0
    for result in (logprobs, entropy, directions, *statistics):
        assert not result.cpu()[skipped].any()
    if name != "huge logits":  # there p itself is as uncertain as float32 logits near 1000 are
        assert_rows_close("directions", directions, exact[2], given["hidden"].dtype)


def check_backward(backend, name, device):
    """A case's gradients of hidden, weight and bias in a backend beside float64."""
    given = CASES[name]
    args, above = on(device, given), gradients_from_above(given)
    logprobs, entropy, statistics, _ = backend.linear_logprobs(**args, entropy=True, directions=False)
    gradients = backend.linear_logprobs_backward(
        **args, logprobs=logprobs, entropy=entropy, statistics=statistics,
        d_logprobs=above[0].to(device), d_entropy=above[1].to(device),
        weight_gradient=True, bias_gradient=given["bias"] is not None,
    )  # fmt: skip
    exact, plain = by_torch(given, torch.float64, *above)[3:], by_torch(given, torch.float32, *above)[3:]
    for key, ours, truth, torchs in zip(("hidden", "weight", "bias"), gradients, exact, plain, strict=False):
        assert ours.dtype == given[key].dtype and ours.shape == truth.shape
        half = given["hidden"].dtype != torch.float32
        scale = float(truth.abs().max()) if truth.numel() else 0.0
        # in half precision the gradient of each logit is rounded before the product, in which such terms cancel
        absolute = scale * (2**-6 if half else 4e-6) + (3e-6 if name == "fp16" else 0)
        assert_as_accurate_as_torch(f"gradient of {key}", ours, truth, torchs, absolute)


def check_banned_tokens(backend, device):
    """Half of the vocabulary has a bias of -inf: everything is as with the other half alone."""
    args = on(device, CASES["banned tokens"])
    half = args | {"bias": None, "weight": args["weight"][::2].contiguous()}
    half["labels"] = torch.where(args["labels"] < 0, -100, args["labels"] // 2)
    found, expected = (backend.linear_logprobs(**given, entropy=True, directions=True) for given in (args, half))
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
