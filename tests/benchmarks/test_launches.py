"""What `python -m benchmarks.launches` counts: it does not grow where it must not."""

from __future__ import annotations

import pytest
import torch

from benchmarks.launches import Launches, decode_layer, decoding, main, training, training_layer


def test_a_training_layer_asks_for_as_much_whatever_the_number_of_sequences():
    expected = training_layer((64,))
    assert expected[0]["rlhf::packed_attention"] == expected[1]["rlhf::packed_attention_backward"] == 1
    assert training_layer((2,) * 32) == training_layer((30, 1, 33)) == expected
    assert expected[0].total() < 20 and expected[1].total() < 25


def test_the_rest_of_a_forward_and_backward_does_not_grow_either():
    assert training((64,), 1) == training((2,) * 32, 1) == training((30, 1, 33), 1)


def test_a_decode_step_is_one_replay_and_a_reading_a_constant():
    few, many = decoding(2, 16, 8), decoding(9, 16, 8)
    assert few == many and few[:2] == (16, 2)
    replays, readings, others = decoding(9, 48, 8)
    assert (replays, readings) == (48, 6)
    assert others - few[2] == 4 * 1  # four more readings: the line of the buffer is set back
    assert decoding(9, 48, 16)[2] < others


def test_a_decode_layer_takes_three_products_less_with_weights_side_by_side():
    apart, joined = decode_layer(3, joined=False), decode_layer(9, joined=True)
    assert apart.total() - joined.total() == 3
    assert apart - joined == {"aten::mm": 3} and not joined - apart
    assert joined["rlhf::rotary"] == joined["rlhf::swiglu"] == 1 and joined["rlhf::rms_norm"] == 2


def test_views_and_memory_count_nothing_and_copies_do():
    with Launches() as launches:
        x = torch.empty(4, 4)
        x.t().reshape(4, 4)[1:].expand(3, 4)
        x.t().contiguous(), x + 1, x.zero_()
    assert launches.counts == {"aten::clone": 1, "aten::add": 1, "aten::zero_": 1}


@pytest.mark.slow
def test_the_command_prints_its_table(capsys):
    assert main() == 0
    assert "training layer, 128 sequences of 2, backward" in capsys.readouterr().out
