"""What the row kernels do to a block of logits: soft-cap, one step of the running softmax, log1p and expm1."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logits(u, bias, column, inside, inverse_temperature, softcap):
    """z = softcap(u + bias) / T, and dz/du."""
    if bias is not None:
        u += tl.load(bias + column, mask=inside, other=0.0)
    z, slope = u, 1.0
    if softcap is not None:
        x = u / softcap
        t = tl.exp(-2.0 * tl.abs(x))
        far = (1.0 - t) / (1.0 + t)
        x2 = x * x  # near 0, where 1 - t cancels: the minimax polynomial of Cephes' tanhf
        near = ((-5.70498872745e-3 * x2 + 2.06390887954e-2) * x2 - 5.37397155531e-2) * x2 + 1.33314422036e-1
        near = x + x * x2 * (near * x2 - 3.33332819422e-1)
        z = softcap * tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))
        slope = 4.0 * t / ((1.0 + t) * (1.0 + t))
    return z * inverse_temperature, slope * inverse_temperature


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0; below 1/2 by the series of 2 artanh(x / (2 + x)), where 1 + x would round x away."""
    s = x / (2.0 + x)
    s2 = s * s
    series = 2.0 * s * (1.0 + s2 * (1.0 / 3 + s2 * (1.0 / 5 + s2 * (1.0 / 7 + s2 * (1.0 / 9)))))
    return tl.where(x < 0.5, series, tl.log(1.0 + x))


@triton.jit
def expm1(x):
    """e^x - 1 for x <= 0; above -1/2 by Taylor's series, where the difference would cancel."""
    series = 1.0 + x * (1.0 / 6 + x * (1.0 / 42 + x * (1.0 / 336)))
    series = x * (1.0 + x * (1.0 / 2 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120) * series))))
    return tl.where(x > -0.5, series, tl.exp(x) - 1.0)


@triton.jit
def advance(z, inside, largest, total):
    """One more logit for each lane: d = z - largest, e^-|d|, whether z is the new largest; the new largest and sum."""
    d = tl.where(inside, z - largest, float("-inf"))
    e = tl.exp(-tl.abs(d))
    grew = d > 0
    return d, e, grew, tl.where(grew, z, largest), tl.where(grew, total * e + 1.0, total + e)
