"""GAE, reward shaping, moments and whitening by Triton, against the public functions on float64 columns."""

from __future__ import annotations

import pytest
import torch

import rlhf_kernels
from tests.kernels.by_backend import triton

LENGTHS = [[], [0], [1], [3, 0, 700, 1, 512, 0], [1100]]  # a block of time has 512 slots


def offsets(lengths):
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0)], dtype=torch.int32)


def close(ours, exact, tolerance):
    torch.testing.assert_close(ours.cpu().double(), exact.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_gae(lengths, bootstrapped, device):
    g = torch.Generator().manual_seed(len(lengths))
    rewards, values = torch.randn(2, sum(lengths), generator=g)
    bootstrap = torch.randn(len(lengths), generator=g) if bootstrapped else None
    exact = rewards.double()
    settings = {"gamma": 0.99, "lam": 0.95}
    exact_returns = rlhf_kernels.gae_(
        exact, values.double(), offsets(lengths), bootstrap=bootstrap.double() if bootstrapped else None, **settings
    )
    ours = rewards.to(device)
    args = {"rewards": ours, "values": values.to(device), "cu_responses": offsets(lengths).to(device), **settings}
    args["bootstrap"] = bootstrap.to(device) if bootstrapped else None
    assert triton.refusal("gae_", **args) is None
    returns = triton.gae_(**args)
    close(ours, exact, 2e-5)
    close(returns, exact_returns, 2e-5)


def test_gae_by_hand_writes_through_a_strided_column(device):
    """gamma 1/2, lam 1/2: d = (1 + 4 - 2, 0 + 0 - 8) = (3, -8), A = (3 - 2, -8)."""
    rewards = torch.tensor([[5.0, 99.0], [1.0, 99.0], [0.0, 99.0]], device=device)
    returns = triton.gae_(
        rewards=rewards[:, 0],
        values=torch.tensor([2.0, 2.0, 8.0], device=device),
        cu_responses=offsets([1, 2]).to(device),
        gamma=0.5,
        lam=0.5,
        bootstrap=None,
    )
    assert rewards.tolist() == [[3.0, 99.0], [1.0, 99.0], [-8.0, 99.0]]
    assert returns.tolist() == [5.0, 3.0, 0.0]


def test_a_nan_stays_in_its_own_sequence(device):
    rewards = torch.tensor([float("nan"), 1.0, 2.0], device=device)
    values = torch.tensor([1.0, 4.0, 0.0], device=device)
    triton.gae_(
        rewards=rewards, values=values, cu_responses=offsets([1, 2]).to(device), gamma=1.0, lam=1.0, bootstrap=None
    )
    assert rewards[0].isnan() and rewards[1:].tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_shaped_rewards(lengths, device):
    g = torch.Generator().manual_seed(1)
    kl, scores = torch.randn(sum(lengths), generator=g), torch.randn(len(lengths), generator=g)
    index = torch.where(offsets(lengths).diff() == 0, -1, offsets(lengths)[1:].long() - 1)
    args = (scores, index, offsets(lengths))
    exact = torch.zeros_like(kl)
    rlhf_kernels.shape_rewards_(exact, kl, *args, kl_coef=0.3)
    ours = torch.full_like(kl, float("nan")).to(device)
    names = ("scores", "score_index", "cu_responses")
    given = {"rewards": ours, "kl": kl.to(device), **{n: x.to(device) for n, x in zip(names, args, strict=True)}}
    assert triton.refusal("shape_rewards_", **given, kl_coef=0.3) is None
    assert triton.shape_rewards_(**given, kl_coef=0.3) is None
    close(ours, exact, 1e-6)


def column(size, masked, seed=2):
    """Entries near 1000, NaN outside the mask: there the difference of two sums of squares would be lost."""
    g = torch.Generator().manual_seed(seed)
    x, mask = 1000 + torch.randn(size, generator=g), torch.rand(size, generator=g) > 0.4
    return (torch.where(mask, x, float("nan")), mask) if masked else (x, None)


@pytest.mark.parametrize("size", [0, 1, 1024, 3 * 1024 + 5, 600 * 1024], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_moments(size, masked, dtype, device):
    if size > 600 * 1000 and dtype != torch.float32:
        pytest.skip("more blocks than programs: one dtype shows it")
    x, mask = column(size, masked)
    x = x.to(dtype)
    ours = triton.moments(x=x.to(device), mask=None if mask is None else mask.to(device))
    assert ours.dtype == torch.float64 and ours.shape == (3,)
    entries = (x if mask is None else x[mask]).double()
    mean = entries.mean() if len(entries) else torch.zeros(())
    exact = torch.stack([torch.tensor(float(len(entries))), mean, (entries - mean).square().sum()])
    close(ours, exact, 1e-11)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shift_mean", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_whitening(masked, shift_mean, dtype, given, device):
    x, mask = column(2500, masked)
    x = x.to(dtype)
    settings = {"shift_mean": shift_mean, "ddof": 1, "eps": 1e-8}
    ours = x.clone().to(device).view(50, 50).t()  # not contiguous
    held = mask.to(device).view(50, 50).t() if masked else None
    stats = torch.tensor([10.0, 999.0, 40.0], dtype=torch.float64)
    triton.whiten_(x=ours, mask=held, moments=stats.to(device) if given else None, **settings)
    entries = (x[mask] if masked else x).double()
    count, mean, m2 = stats if given else (len(entries), entries.mean(), entries.var(correction=0) * len(entries))
    exact = (x.double() - mean) / torch.sqrt(m2 / (count - 1) + 1e-8) + (0 if shift_mean else mean)
    exact = torch.where(mask, exact, x.double()) if masked else exact
    close(ours.t().reshape(-1), exact, 1e-6 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("x", [[], [7.0]], ids=str)
def test_whitening_leaves_too_few_entries_alone(x, device):
    ours = torch.tensor(x, device=device)
    triton.whiten_(x=ours, mask=None, moments=None, shift_mean=True, ddof=1, eps=1e-8)
    assert ours.tolist() == x
