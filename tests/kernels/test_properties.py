"""Properties that hold for any shapes, masks and ragged offsets, empty responses included, under every backend."""

from __future__ import annotations

import math
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import rlhf_kernels as kernels

quick = settings(max_examples=40, deadline=None)
BACKENDS = [None, "reference"]
lengths = st.lists(st.integers(0, 7), max_size=6)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.float32, torch.float64])


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).int()


def columns(seed: int, count: int, slots: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return list(torch.randn(count, slots, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(lengths, seeds, dtypes, st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_gae_is_the_discounted_sum_of_its_deltas(backend, lengths, seed, dtype, gamma, lam, bootstrapped):
    """A_t = sum over k of (gamma lam)^k d_{t+k}, the closed form of the recurrence, in Python's floats."""
    rewards, values = columns(seed, 2, sum(lengths), dtype)
    beyond = columns(seed + 1, 1, len(lengths), dtype)[0] if bootstrapped else None
    advantages, cu = rewards.clone(), offsets(lengths)
    returns = kernels.gae_(advantages, values, cu, gamma=gamma, lam=lam, bootstrap=beyond, backend=backend)
    expected = []
    for b, (start, stop) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        r, v = rewards[start:stop].tolist(), values[start:stop].tolist()
        v.append(float(beyond[b]) if bootstrapped else 0.0)
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        expected += [math.fsum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(advantages.double(), expected, **tolerance(dtype))
    torch.testing.assert_close(returns.double(), expected + values.double(), **tolerance(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(lengths, seeds, dtypes)
def test_shaped_rewards_of_a_sequence_add_up_to_its_score_less_its_penalty(backend, lengths, seed, dtype):
    (kl,), (scores,) = columns(seed, 1, sum(lengths), dtype), columns(seed + 1, 1, len(lengths), dtype)
    cu, rewards = offsets(lengths), torch.full_like(kl, torch.nan)
    index = torch.tensor([stop - 1 if n else -1 for n, stop in zip(lengths, cu[1:].tolist(), strict=True)]).long()
    kernels.shape_rewards_(rewards, kl, scores, index, cu, kl_coef=0.3, backend=backend)
    for b, n in enumerate(lengths):
        part = slice(int(cu[b]), int(cu[b + 1]))
        expected = float(scores[b]) - 0.3 * float(kl[part].double().sum()) if n else 0.0
        assert float(rewards[part].double().sum()) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(st.lists(st.booleans(), max_size=30), seeds, dtypes, st.booleans(), st.integers(0, 1))
def test_whitening_gives_mean_0_or_the_old_one_and_variance_1(backend, mask, seed, dtype, shift_mean, ddof):
    mask = torch.tensor(mask, dtype=torch.bool)
    (x,) = columns(seed, 1, len(mask), dtype)
    x = torch.where(mask, 3 * x + 2, torch.nan)
    before = x.clone()
    kernels.whiten_(x, mask=mask, shift_mean=shift_mean, ddof=ddof, backend=backend)
    assert x[~mask].isnan().all()
    inside, old = x[mask].double(), before[mask].double()
    if len(inside) <= ddof:
        torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
        return
    assert float(inside.mean()) == pytest.approx(0.0 if shift_mean else float(old.mean()), abs=1e-5)
    variance = float(old.var(correction=ddof))
    if variance > 1e-3:
        assert float(inside.var(correction=ddof)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(lengths, seeds, dtypes)
def test_moments_of_parts_merge_into_those_of_the_whole(backend, lengths, seed, dtype):
    (x,) = columns(seed, 1, sum(lengths), dtype)
    merged = kernels.moments(x[:0], backend=backend)
    for part in x.split(lengths):
        merged = kernels.merge_moments(merged, kernels.moments(part.contiguous(), backend=backend))
    for got, expected in zip(merged, kernels.moments(x, backend=backend), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(lengths, seeds, dtypes, st.sampled_from([None, 0.2]), st.sampled_from([None, 1.5]), st.booleans())
def test_losses_and_gradients_of_micro_batches_add_up(
    backend, lengths, seed, dtype, cliprange_value, dual_clip, entropy
):
    """Each part with the denominators of the whole; the gradients are those of the whole."""
    slots = sum(lengths)
    data = columns(seed, 7, slots, dtype)
    mask = torch.rand(slots, generator=torch.Generator().manual_seed(seed)) < 0.7
    choices = {"cliprange": 0.2, "cliprange_value": cliprange_value, "vf_coef": 0.1, "dual_clip": dual_clip}
    count = max(1, int(mask.sum()))

    def run(parts):
        leaves = [x.clone().requires_grad_() for x in data]
        total = torch.zeros((), dtype=dtype)
        for part in parts:
            cut = [x[part] for x in leaves]
            out = kernels.ppo_loss(
                *cut[:6], mask=mask[part], entropy=cut[6] if entropy else None, entropy_coef=0.1 if entropy else 0.0,
                denominator=float(count), value_denominator=float(count), backend=backend, **choices,
            )  # fmt: skip
            total = total + out.loss
        total.backward()
        return [total.detach(), *(leaves[i].grad for i in ((0, 3, 6) if entropy else (0, 3)))]

    cu = offsets(lengths).tolist()
    parts = [slice(a, b) for a, b in pairwise(cu)]
    if parts:
        for got, expected in zip(run(parts), run([slice(None)]), strict=True):
            torch.testing.assert_close(got, expected, **tolerance(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(
    st.integers(0, 9), st.integers(1, 20), st.integers(1, 70), seeds, st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([None, 5.0]), st.floats(0.3, 3), st.booleans(), st.booleans(), st.floats(0, 1),
)  # fmt: skip
def test_log_probs_entropy_and_gradient_are_those_of_float64(
    backend, n, h, v, seed, dtype, softcap, temperature, with_bias, entropy_gradient, ignored
):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, h, generator=g), 2 * torch.randn(v, h, generator=g)
    hidden, weight = hidden.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype))
    bias = torch.randn(v, generator=g) if with_bias else None
    labels = torch.randint(v, (n,), generator=g)
    labels[torch.rand(n, generator=g) < ignored] = -100
    upstream = torch.randn(2, n, generator=g)
    leaf = hidden.clone().requires_grad_()
    out = kernels.linear_logprobs(
        leaf, weight, labels, bias=bias, temperature=temperature, softcap=softcap, entropy=True,
        entropy_gradient=entropy_gradient, backend=backend,
    )  # fmt: skip
    loss = (upstream[0] * out.logprobs).sum() + (upstream[1] * out.entropy).sum() * entropy_gradient
    loss.backward()
    exact = hidden.double().requires_grad_()
    logits = exact @ weight.double().t() + (0 if bias is None else bias.double())
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    every = (logits / temperature).log_softmax(1)
    scored = labels >= 0
    chosen = torch.where(scored, every.gather(1, labels.clamp(min=0)[:, None]).squeeze(1), 0.0)
    entropies = torch.where(scored, -(every.exp() * every).sum(1), 0.0)
    ((upstream[0] * chosen).sum() + (upstream[1] * entropies).sum() * entropy_gradient).backward()
    torch.testing.assert_close(out.logprobs.double(), chosen, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.entropy.double(), entropies, rtol=1e-5, atol=1e-4)
    close = {"rtol": 2e-4, "atol": 2e-4} if dtype == "float32" else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(leaf.grad.double(), exact.grad, **close)


@quick
@given(lengths, seeds, st.integers(0, 3))
def test_unpack_then_pack_gives_the_same_back(lengths, seed, more):
    (flat,) = columns(seed, 1, sum(lengths), torch.float32)
    longest = max(lengths, default=0)
    padded, mask = kernels.unpack(flat, offsets(lengths), length=longest + more, fill=torch.nan)
    again, cu = kernels.pack(padded, mask)
    torch.testing.assert_close(again, flat, rtol=0, atol=0)
    assert cu.tolist() == offsets(lengths).tolist()


def matrix(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return columns(seed, 1, math.prod(shape), dtype)[0].view(shape)


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(st.integers(0, 5), st.integers(1, 40), seeds, dtypes, st.sampled_from([-8.0, 0.25, 2.0]))
def test_a_norm_does_not_depend_on_the_length_of_a_row_and_its_gradient_is_at_right_angles(
    backend, rows, width, seed, dtype, factor
):
    x = matrix(seed, rows, width, dtype=dtype).requires_grad_()
    ones = torch.ones(width, dtype=dtype)
    y = kernels.rms_norm(x, ones, eps=0.0, backend=backend)
    scaled = kernels.rms_norm(factor * x.detach(), ones, eps=0.0, backend=backend)
    torch.testing.assert_close(scaled, y.detach() * math.copysign(1, factor), **tolerance(dtype))
    torch.testing.assert_close(y.detach().square().mean(-1), torch.ones(rows, dtype=dtype), **tolerance(dtype))
    (dx,) = torch.autograd.grad((y * matrix(seed + 1, rows, width, dtype=dtype)).sum(), x)
    lengths = x.detach().norm(dim=-1)
    assert ((dx * x.detach()).sum(-1).abs() <= 1e-4 * lengths * dx.norm(dim=-1) + 1e-4).all()


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20), seeds, dtypes)
def test_turning_back_gives_the_same_and_products_depend_on_the_difference_of_angles(
    backend, tokens, heads, kv_heads, half, seed, dtype
):
    q, k = (matrix(seed, tokens, n, 2 * half, dtype=dtype) for n in (heads, kv_heads))
    angles = matrix(seed + 1, tokens, half, dtype=dtype)
    once = kernels.rotary(q, k, angles.cos(), angles.sin(), backend=backend)
    back = kernels.rotary(*once, angles.cos(), -angles.sin(), backend=backend)
    for x, again in zip((q, k), back, strict=True):
        torch.testing.assert_close(again, x, **tolerance(dtype))
    more = angles + 0.7
    other = kernels.rotary(q, k, more.cos(), more.sin(), backend=backend)
    products = [(a[:, :1] * b[:, :1]).sum(-1) for a, b in (once, other)]
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)


@quick
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 4)), max_size=5), seeds, dtypes)
def test_groups_of_rows_may_be_divided_and_give_the_same(groups, seed, dtype):
    """One group for each row: the same results, and the same sums of gradients."""
    slots, rows = [slot for slot, _ in groups], [count for _, count in groups]
    x, weight = matrix(seed, sum(rows), 3, dtype=dtype), matrix(seed + 1, 5, 3, dtype=dtype)
    sides = [[matrix(seed + r, *shape, dtype=dtype) for r, shape in enumerate(side)]
             for side in (((1, 3), (2, 3), (4, 3)), ((5, 1), (5, 2), (5, 4)))]  # fmt: skip
    single = [slot for slot, count in groups for _ in range(count)]

    def run(slots, offsets):
        leaves = [t.clone().requires_grad_() for t in (x, *sides[0], *sides[1])]
        y = kernels.lora_linear(leaves[0], weight, leaves[1:4], leaves[4:], [0.5, 2.0, 1.0], slots, offsets)
        y.square().sum().backward()
        return [y.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in leaves)]

    whole, apart = run(slots, offsets(rows).tolist()), run(single, list(range(len(single) + 1)))
    torch.testing.assert_close(whole, apart, rtol=1e-3, atol=1e-3)
