"""Packing picks the positions that predict; a scalar head is linear, begins at zero and can be normalised."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.model.batches import cut_by_tokens
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import ScalarHead, positions
from rlhf_fast.runtime.errors import UsageError


def test_a_token_is_predicted_from_the_position_before_it_in_its_own_sequence():
    packed = Packed.from_sequences([[5, 6, 7], [8], [9, 10]], [[5, -100, 7], [8], [-100, 10]])
    assert packed.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert packed.cu_seqlens == [0, 3, 4, 6]
    assert packed.rows.tolist() == [1, 4]  # the first token of a sequence has nothing before it
    assert packed.labels.tolist() == [7, 10]


def test_without_labels_the_last_position_of_each_sequence_is_read():
    packed = Packed.from_sequences([[5, 6, 7], [8]])
    assert packed.rows.tolist() == [2, 3]
    assert packed.labels.tolist() == [-100, -100]


def test_a_micro_batch_in_which_nothing_is_predicted_still_has_integer_rows():
    packed = Packed.from_sequences([[5, 6]], [[-100, -100]])
    assert packed.rows.dtype == packed.labels.dtype == packed.tokens.dtype == torch.int64
    assert torch.zeros(2, 4)[packed.rows].shape == (0, 4)


def test_an_empty_sequence_is_refused():
    with pytest.raises(UsageError, match="sequence 1 is empty"):
        Packed.from_sequences([[5], []])


def test_positions_start_again_in_each_sequence():
    assert positions([0, 3, 4, 4, 6], torch.device("cpu")).tolist() == [0, 1, 2, 0, 0, 1]


def test_groups_keep_the_order_and_the_limit_and_a_long_sequence_goes_alone():
    assert cut_by_tokens([3, 4, 2, 9, 1, 1], 7) == [[0, 1], [2], [3], [4, 5]]
    assert cut_by_tokens([], 7) == []


def test_a_fresh_head_gives_zero():
    assert ScalarHead(4)(torch.randn(3, 4, dtype=torch.bfloat16)).equal(torch.zeros(3))


def test_normalising_a_head_standardises_its_output():
    head = ScalarHead(2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([2.0, -1.0]))
        head.bias.fill_(3.0)
    x = torch.tensor([[1.0, 1.0], [0.0, 5.0]])
    assert head(x).tolist() == [4.0, -2.0]
    head.normalise_(mean=1.0, std=3.0)
    torch.testing.assert_close(head(x), torch.tensor([1.0, -1.0]))
