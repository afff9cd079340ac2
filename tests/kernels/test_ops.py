"""Every operation is a `torch.library` op that passes torch's own checks, compiles whole and keeps its precision."""

from __future__ import annotations

import pytest
import torch

import rlhf_kernels as kernels

N, H, V = 6, 5, 11
CU = torch.tensor([0, 2, 2, 6], dtype=torch.int32)
LABELS = torch.tensor([3, -100, 0, 10, 7, 7])
MASK = torch.tensor([True, True, False, True, True, True])


def columns(count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return list(torch.randn(count, N, generator=torch.Generator().manual_seed(count), dtype=dtype))


def matrices(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, H, generator=g).to(dtype), torch.randn(V, H, generator=g).to(dtype)


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


hidden, weight = matrices()
lp, old, advantages, values, old_values, returns, entropy = columns(7)
SCORED = torch.ops.rlhf.linear_logprobs(hidden, weight, LABELS, None, 1.0, None, True, False, True, None, "reference")
heads = torch.randn(3, N, 4, 2, generator=torch.Generator().manual_seed(1))
CACHE = torch.randn(2, 3, 2, 5, 2, generator=torch.Generator().manual_seed(2))
ANGLES = torch.linspace(0, 3, N)[:, None]
LORA = ([weight[:2, :H].clone(), weight[2:3, :H].clone()], [hidden[:V, :2].clone(), hidden[:V, 2:3].clone()])
LORA_CALL = (hidden, hidden[:, :H].clone(), None, *LORA, [0.5, 2.0], [1, -1, 0], [2, 1, 3])
LORA_KEPT = torch.ops.rlhf.lora_linear(*LORA_CALL, "reference")
ATTENDED = torch.ops.rlhf.packed_attention(*heads, [0, 2, 2, 6], 0.5, None, "reference")
SAMPLES = {
    "rms_norm": [(leaf(hidden), torch.ones(H), 1e-6), (leaf(hidden), leaf(torch.ones(H)), 0.1)],
    "rms_norm_backward": [(hidden, torch.ones(H), lp.abs(), hidden + 1, gradient) for gradient in (False, True)],
    "swiglu": [(leaf(hidden), leaf(hidden + 1))],
    "swiglu_backward": [(hidden, hidden + 1, hidden + 2)],
    "rotary": [(leaf(heads[0]), leaf(heads[1, :, :2]), ANGLES.cos(), ANGLES.sin(), back) for back in (False, True)],
    "packed_attention": [
        (leaf(heads[0]), leaf(heads[1]), leaf(heads[2]), [0, 2, 2, 6], 0.5, None),
        (leaf(heads[0]), leaf(heads[1, :, :2]), heads[2, :, :2], [0, 6], 0.5, 3),
    ],
    "packed_attention_backward": [(*heads, *ATTENDED, heads[0] + 1, [0, 2, 2, 6], 0.5, window) for window in (None, 1)],
    "decode_attention": [
        (heads[0, :3], *CACHE, torch.tensor([1, 5, 3]), 0.5, None, None),
        (heads[0, :2], *CACHE, torch.tensor([4, 2]), 0.5, 2, 3.0),
    ],
    "lora_linear": [
        LORA_CALL,
        (hidden, hidden[:, :H].clone(), lp, *LORA, [0.5, 2.0], [1], [6]),
    ],
    "lora_linear_backward": [
        (*LORA_CALL[:2], *LORA_KEPT[1:], *LORA_CALL[3:], hidden[:, :1].expand(N, N).clone(), True, False, False, True),
        (*LORA_CALL[:2], *LORA_KEPT[1:], *LORA_CALL[3:], hidden[:, :1].expand(N, N).clone(), False, True, True, False),
    ],
    "gae_": [
        (lp.clone(), values, CU, 0.99, 0.95, None, False, None, 1, 1e-8),
        (lp.clone(), values, CU, 0.99, 0.95, values[:3].clone(), False, None, 1, 1e-8),
        (lp.clone(), values, CU, 0.99, 0.95, None, True, MASK, 1, 1e-8),
        (lp.clone(), values, CU, 0.99, 0.95, values[:3].clone(), True, None, 0, 0.1),
    ],
    "shape_rewards_": [(torch.zeros(N), lp, values[:3].clone(), torch.tensor([1, -1, 5]), CU, 0.1)],
    "moments": [(lp, None), (lp, MASK)],
    "whiten_": [(lp.clone(), MASK, None, True, 1, 1e-8), (lp.clone(), None, torch.ones(3).double(), False, 0, 1e-8)],
    "ppo_loss": [
        (leaf(lp), old, advantages, leaf(values), old_values, returns, MASK, None, 0.2, 0.2, 0.1, leaf(entropy), 0.01,
         None, None, torch.tensor(4.0), None, None),
        (leaf(lp), old, advantages, values, old_values, returns, None, None, 0.2, None, 0.1, None, 0.0, 3.0, 20.0, None,
         None, returns.abs()),
    ],
    "linear_logprobs": [
        (leaf(hidden), weight, LABELS, None, 1.0, None, False, True, False, 5),
        (leaf(hidden), leaf(weight), LABELS, leaf(torch.ones(V)), 0.7, 3.0, True, False, True, None),
    ],
    "linear_logprobs_backward": [
        (hidden, weight, LABELS, None, 1.0, None, *SCORED[:3], lp, None, False, False, 5),
        (hidden, weight, LABELS, None, 1.0, None, *SCORED[:3], lp, old, True, False, None),
    ],
    "policy_reference_logprobs": [
        (hidden, hidden + 1, weight, LABELS, None, None, 1.0, None, True, None),
        (hidden, hidden + 1, weight, LABELS, weight + 1, torch.ones(V), 0.7, 3.0, False, 5),
    ],
}  # fmt: skip
SAMPLES["sample"] = [
    (hidden, weight, None, None, 1.0, torch.arange(N), torch.arange(N), 0, 1.0),
    (hidden, weight, torch.ones(V), 3.0, 0.0, torch.arange(N), torch.arange(N), 0, 1.0),
    (hidden, weight, None, None, 0.7, torch.arange(N), torch.arange(N), 2, 0.9),
]
CASES = [(name, i) for name, samples in SAMPLES.items() for i in range(len(samples))]


def test_every_op_of_the_library_has_a_sample():
    assert set(SAMPLES) == {name for name in dir(torch.ops.rlhf) if not name.startswith("_") and name != "name"}


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("name, i", CASES)
def test_opcheck_passes(name, i, backend):
    backend = "reference" if name.startswith("lora_linear") else backend
    torch.library.opcheck(getattr(torch.ops.rlhf, name).default, (*SAMPLES[name][i], backend))


def whole_pipeline(hidden, values, rewards):
    """Every public operation but the conversions, in the order in which PPO calls them."""
    scored = kernels.policy_reference_logprobs(hidden, hidden + 0.1, weight, LABELS, exact_kl=True)
    kernels.shape_rewards_(rewards, scored.kl, old[:3], torch.tensor([1, -1, 5]), CU, kl_coef=0.1)
    kernels.whiten_(rewards, moments=kernels.moments(rewards, mask=MASK), shift_mean=False)
    kernels.gae_(rewards.clone(), values.detach(), CU, gamma=0.99, lam=0.95)
    returns = kernels.gae_(rewards, values.detach(), CU, gamma=0.99, lam=0.95, whiten=True, mask=MASK)
    out = kernels.linear_ppo_loss(
        hidden, weight, LABELS, scored.logprobs, rewards, values, old_values, returns,
        cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, entropy=True,
    )  # fmt: skip
    return out.loss, out.entropy, out.clipfrac


def test_the_whole_pipeline_compiles_without_a_graph_break_and_gives_the_same():
    results = []
    for run in (whole_pipeline, torch.compile(whole_pipeline, fullgraph=True, backend="aot_eager")):
        inputs = leaf(hidden), leaf(values), torch.zeros(N)
        out = run(*inputs)
        out[0].backward()
        results.append([*(x.detach() for x in out), inputs[0].grad, inputs[1].grad, inputs[2]])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert results[0][3].abs().sum() > 0


def every_function(backend):
    """Results and gradients of what multiplies matrices, and of the layers between, for float32 inputs."""
    h, w = leaf(hidden), leaf(weight)
    out = kernels.linear_logprobs(h, w, LABELS, entropy=True, backend=backend)
    q = leaf(heads[0])
    attended = kernels.packed_attention(q, heads[1], heads[2], [0, 2, 6], scale=0.5, backend=backend)
    adapters = [leaf(x) for side in LORA for x in side]
    layer = (hidden + 1, adapters[:2], adapters[2:], [0.5, 2.0])
    adapted = [kernels.lora_linear(x, *layer, [slot], [0, N], bias=lp) for x, slot in ((h, 0), (hidden, -1))]
    normed = kernels.rms_norm(kernels.swiglu(h, h + 1, backend=backend), torch.ones(H), eps=0.1, backend=backend)
    results = [out.logprobs, out.entropy, attended, *adapted, normed]
    sum(x.square().sum() for x in results).backward()
    return [*results, *(x.grad for x in (h, w, q, adapters[0], adapters[2]))]


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["reference", None])
def test_autocast_changes_nothing(backend, lowered):
    plain = every_function(backend)
    with torch.autocast("cpu", dtype=lowered):
        assert torch.mm(hidden, hidden.t()).dtype == lowered
        cast = every_function(backend)
        assert torch.is_autocast_enabled("cpu")
    for ours, right in zip(cast, plain, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, right, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", None])
def test_non_contiguous_inputs_give_the_same(backend):
    def apart(x):
        return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]

    results = []
    for change in (torch.clone, apart):
        rewards = change(lp)
        back = kernels.gae_(rewards, change(values), CU, gamma=0.9, lam=0.8, backend=None)
        kernels.whiten_(rewards, backend=None)
        h = change(hidden).requires_grad_()
        out = kernels.linear_logprobs(h, change(weight), LABELS, backend=backend if change is torch.clone else None)
        out.logprobs.sum().backward()
        results.append((back, rewards.clone(), out.logprobs.detach(), h.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_no_rows_at_all_give_empty_results():
    empty, no_labels = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    h = torch.zeros(0, H, requires_grad=True)
    out = kernels.linear_logprobs(h, weight, no_labels, entropy=True)
    out.logprobs.sum().backward()
    assert out.logprobs.shape == out.entropy.shape == (0,) and h.grad.shape == (0, H)
    rewards = empty.clone()
    offsets = torch.zeros(1, dtype=torch.int32)
    kernels.shape_rewards_(rewards, empty, empty, no_labels, offsets, kl_coef=0.1)
    assert kernels.gae_(rewards, empty, offsets, gamma=1.0, lam=1.0).shape == (0,)
    kernels.whiten_(rewards)
    assert [float(x) for x in kernels.moments(empty)] == [0, 0, 0]
    settings = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}
    assert kernels.ppo_loss(*[empty] * 6, **settings).loss == 0


@pytest.mark.parametrize("entropy", [False, True])
def test_a_gradient_of_the_gradient_is_refused(entropy):
    h = leaf(hidden)
    out = kernels.linear_logprobs(h, weight, LABELS, entropy=entropy)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(out.logprobs.square().sum(), h, create_graph=True)
