"""What `pack` and `unpack` promise."""

from __future__ import annotations

import re

import pytest
import torch

from rlhf_kernels import pack, unpack

PADDED = torch.tensor([[0, 1, 2], [3, 0, 0], [0, 0, 0], [4, 5, 6]])
MASK = torch.tensor([[False, True, True], [True, False, False], [False] * 3, [True] * 3])


def test_packing_keeps_order_and_gives_int32_offsets():
    flat, cu = pack(PADDED, MASK)
    assert flat.tolist() == [1, 2, 3, 4, 5, 6]
    assert cu.tolist() == [0, 2, 3, 3, 6] and cu.dtype == torch.int32


def test_unpacking_pads_on_the_right_with_the_fill():
    padded, mask = unpack(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 2, 3], dtype=torch.int32), fill=-1)
    assert padded.tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]


def test_unpacking_to_a_given_length():
    padded, mask = unpack(torch.tensor([1.0]), torch.tensor([0, 1], dtype=torch.int32), length=3)
    assert padded.tolist() == [[1.0, 0.0, 0.0]] and mask.tolist() == [[True, False, False]]


def test_packing_what_was_unpacked_gives_it_back():
    flat, cu = torch.randn(7, 2), torch.tensor([0, 3, 3, 4, 7], dtype=torch.int32)
    again, cu_again = pack(*unpack(flat, cu, length=5))
    assert torch.equal(again, flat) and torch.equal(cu_again, cu)


def test_an_empty_batch_goes_both_ways():
    flat, cu = pack(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool))
    assert flat.shape == (0,) and cu.tolist() == [0]
    padded, mask = unpack(flat, cu)
    assert padded.shape == mask.shape == (0, 0)


def test_both_carry_gradients():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    flat, cu = pack(x, MASK)
    padded, _ = unpack(flat, cu)
    padded.sum().backward()
    assert torch.equal(x.grad, MASK.double())


def test_a_length_below_the_longest_sequence_is_refused():
    with pytest.raises(ValueError, match="length is 1, expected at least 2"):
        unpack(torch.ones(2), torch.tensor([0, 2], dtype=torch.int32), length=1)


def test_an_integer_mask_is_refused():
    with pytest.raises(TypeError, match="expected bool"):
        pack(PADDED, MASK.long())


@pytest.mark.parametrize(
    ("cu", "got"),
    [
        (torch.tensor([0, 2]), "torch.int64 of shape (2,)"),
        (torch.tensor([0.0, 2.0]), "torch.float32 of shape (2,)"),
        (torch.tensor([[0, 2]], dtype=torch.int32), "torch.int32 of shape (1, 2)"),
        (torch.zeros(0, dtype=torch.int32), "torch.int32 of shape (0,)"),
    ],
    ids=str,
)
def test_offsets_of_another_type_are_refused(cu, got):
    with pytest.raises(TypeError, match=re.escape(f"cu is {got}, expected int32 offsets of shape (B+1,)")):
        unpack(torch.ones(2), cu)
