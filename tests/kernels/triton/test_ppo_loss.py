"""PPO's loss by Triton, metrics and gradients, against autograd through the public function on float64 columns."""

from __future__ import annotations

import math

import pytest
import torch

import rlhf_kernels
from tests.kernels.by_backend import triton as backend

NAMES = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")
PLAIN = {
    "mask": None,
    "value_mask": None,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.3,
    "entropy": None,
    "entropy_coef": 0.0,
    "dual_clip": None,
    "log_ratio_clamp": None,
    "denominator": None,
    "value_denominator": None,
    "weight": None,
}


def columns(size, seed=0):
    return dict(zip(NAMES, 0.4 * torch.randn(6, size, generator=torch.Generator().manual_seed(seed)), strict=True))


def triton_result(given, device):
    args = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in given.items()}
    assert backend.refusal("ppo_loss", **args) is None
    return [x.cpu() for x in backend.ppo_loss(**args)]


def exact_result(given):
    args = {k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in given.items()}
    leaves = [args[n].requires_grad_() for n in ("logprobs", "values", "entropy") if args[n] is not None]
    columns = [args.pop(n) for n in NAMES]
    out = rlhf_kernels.ppo_loss(*columns, **args)
    gradients = torch.autograd.grad(out.loss, leaves, allow_unused=True, materialize_grads=True)
    metrics = torch.stack([torch.zeros(()).double() if x is None else x.detach() for x in out])
    return [metrics, *gradients, *[torch.zeros(0)] * (3 - len(leaves))]


def assert_agrees(given, device):
    for name, ours, exact in zip(
        ("metrics", "logprobs", "values", "entropy"), triton_result(given, device), exact_result(given), strict=True
    ):
        assert ours.dtype == torch.float32
        scale = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(
            ours.double(), exact.double(), rtol=1e-5, atol=1e-6 * scale, msg=f"{name}: {{}}".format
        )


def masked(size=2600):
    """NaN wherever nothing may be read; the two masks differ."""
    g = torch.Generator().manual_seed(3)
    given = columns(size)
    mask, value_mask = torch.rand(2, size, generator=g) > 0.4
    for name in NAMES:
        given[name][~(mask if name in NAMES[:3] else value_mask)] = math.nan
    entropy, weight = torch.rand(2, size, generator=g)
    entropy[~mask] = weight[~mask] = math.nan
    return PLAIN | given | {"mask": mask, "value_mask": value_mask, "entropy": entropy, "weight": weight}


@pytest.mark.parametrize("size", [0, 1, 1024, 2600])
def test_plain(size, device):
    assert_agrees(PLAIN | columns(size), device)


@pytest.mark.parametrize(
    "settings",
    [
        {"entropy_coef": 0.1},
        {"entropy_coef": 0.1, "weight": None},
        {"entropy": None, "dual_clip": 1.05},
        {"entropy": None, "weight": None, "log_ratio_clamp": 0.3},
        {"cliprange_value": None, "denominator": torch.tensor(1234.5)},
        {"value_mask": None, "value_denominator": torch.tensor(7)},
        {"mask": torch.zeros(2600, dtype=torch.bool)},
    ],
    ids=str,
)
def test_masks_with_nan_outside_and_every_setting(settings, device):
    given = masked() | settings
    if settings.get("value_mask", 0) is None:  # the value loss is then under `mask`
        given |= {k: x for k, x in columns(2600).items() if k in NAMES[3:]}
    assert_agrees(given, device)


def test_ties_and_bounds_are_shared_as_by_autograd(device):
    """Slots at ratio 1 (equal losses), beyond the clip, at a log-ratio clamp's bound, with A = 0; v at v_old +- c."""
    given = {
        "logprobs": torch.tensor([0.0, 1.0, -1.0, 0.5, 1.0, 1.0, -0.5]),
        "old_logprobs": torch.zeros(7),
        "advantages": torch.tensor([2.0, 1.0, 1.0, -2.0, 0.0, -1.0, -1.0]),
        "values": torch.tensor([0.0, 0.25, -0.25, 1.0, -1.0, 0.0, 2.0]),
        "old_values": torch.zeros(7),
        "returns": torch.tensor([1.0, 1.0, 1.0, 0.0, 0.625, 0.0, 1.125]),  # the last: both errors are equal, 0.875
    }
    settings = {"cliprange_value": 0.25, "log_ratio_clamp": 0.5, "dual_clip": 1.5}
    assert_agrees(PLAIN | given | settings, device)


def test_a_nan_inside_the_mask_reaches_the_loss(device):
    for name in NAMES:
        given = PLAIN | columns(5)
        given[name][2] = math.nan
        assert triton_result(given, device)[0][0].isnan(), name
