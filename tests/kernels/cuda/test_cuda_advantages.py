"""GAE by CUDA C++, alone and with whitening in the same launch, against float64."""

from __future__ import annotations

import pytest
import torch

import rlhf_kernels
from tests.kernels.by_backend import ByBackend

backend = ByBackend("cuda")
# a warp takes 128 tokens at a time, a block 8 sequences; on fibres 3 blocks run at the same time
LENGTHS = [[], [0], [1], [3, 0, 300, 1, 128, 0], [1100], [7] * 30]
SETTINGS = {"gamma": 0.99, "lam": 0.95}


def offsets(lengths):
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0)], dtype=torch.int32)


def close(ours, exact, tolerance=2e-5):
    torch.testing.assert_close(ours.cpu().double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("bootstrapped", [False, True])
@pytest.mark.parametrize("whitened", [None, "all", "masked"])
def test_ragged_sequences(lengths, bootstrapped, whitened, device):
    g = torch.Generator().manual_seed(len(lengths))
    rewards, values = torch.randn(2, sum(lengths), generator=g)
    bootstrap = torch.randn(len(lengths), generator=g) if bootstrapped else None
    mask = torch.rand(sum(lengths), generator=g) > 0.3 if whitened == "masked" else None
    exact, beyond = rewards.double(), None if bootstrap is None else bootstrap.double()
    exact_returns = rlhf_kernels.gae_(exact, values.double(), offsets(lengths), bootstrap=beyond, **SETTINGS)
    if whitened:
        rlhf_kernels.whiten_(exact, mask=mask)
    given = {"rewards": rewards, "values": values, "cu_responses": offsets(lengths), "bootstrap": bootstrap}
    given |= {"whiten": True, "mask": mask, "ddof": 1, "eps": 1e-8} if whitened else {}
    given = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    returns = backend.gae_(**given, **SETTINGS)
    close(given["rewards"], exact)
    close(returns, exact_returns)


def test_by_hand_through_a_strided_column(device):
    """gamma 1/2, lam 1/2: d = (1 + 4 - 2, 0 + 0 - 8) = (3, -8), A = (3 - 2, -8)."""
    rewards = torch.tensor([[5.0, 99.0], [1.0, 99.0], [0.0, 99.0]], device=device)
    values = torch.tensor([2.0, 2.0, 8.0], device=device)
    returns = backend.gae_(
        rewards=rewards[:, 0], values=values, cu_responses=offsets([1, 2]).to(device), gamma=0.5, lam=0.5
    )
    assert rewards.tolist() == [[3.0, 99.0], [1.0, 99.0], [-8.0, 99.0]]
    assert returns.tolist() == [5.0, 3.0, 0.0]


def test_whitening_by_hand(device):
    """Advantages 1, 9, 5 and one outside the mask: mean 5, variance (16 + 16) / 2 = 16."""
    rewards, mask = torch.tensor([1.0, 9.0, 7.0, 5.0], device=device), torch.tensor([True, True, False, True])
    returns = backend.gae_(
        rewards=rewards, values=torch.zeros(4, device=device), cu_responses=offsets([1, 1, 1, 1]).to(device),
        gamma=1.0, lam=1.0, whiten=True, mask=mask.to(device), ddof=1, eps=0.0,
    )  # fmt: skip
    assert rewards.tolist() == [-1.0, 1.0, 7.0, 0.0]
    assert returns.tolist() == [1.0, 9.0, 7.0, 5.0]


@pytest.mark.parametrize("rewards", [[], [7.0]], ids=str)
def test_too_few_entries_stay_as_they_are(rewards, device):
    ours = torch.tensor(rewards, device=device)
    given = {"values": torch.zeros_like(ours), "cu_responses": offsets([len(rewards)]).to(device)}
    backend.gae_(rewards=ours, **given, **SETTINGS, whiten=True, ddof=1, eps=1e-8)
    assert ours.tolist() == rewards


def test_a_nan_stays_in_its_own_sequence_and_outside_the_mask(device):
    rewards = torch.tensor([float("nan"), 1.0, 2.0], device=device)
    given = {"values": torch.tensor([1.0, 4.0, 0.0], device=device), "cu_responses": offsets([1, 2]).to(device)}
    alone = rewards.clone()
    backend.gae_(rewards=alone, **given, gamma=1.0, lam=1.0)
    assert alone[0].isnan() and alone[1:].tolist() == [-1.0, 2.0]
    mask = torch.tensor([False, True, True], device=device)
    backend.gae_(rewards=rewards, **given, gamma=1.0, lam=1.0, whiten=True, mask=mask, ddof=0, eps=0.0)
    assert rewards[0].isnan() and rewards[1:].tolist() == [-1.0, 1.0]


def test_large_advantages_keep_their_digits(device):
    """Near 1e4 the difference of two sums of squares would be lost in float32."""
    rewards = 1e4 + torch.randn(700, generator=torch.Generator().manual_seed(0))
    exact = (rewards.double() - rewards.double().mean()) / rewards.double().std()
    ours = rewards.to(device)
    given = {"values": torch.zeros_like(ours), "cu_responses": offsets([1] * 700).to(device)}
    backend.gae_(rewards=ours, **given, **SETTINGS, whiten=True, ddof=1, eps=0.0)
    close(ours, exact, 1e-5)
