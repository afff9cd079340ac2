"""Records of numbers: what is in them, and what counts as a difference."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.same_numbers import differences, even, outcome

ZERO = "float32 [1] df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"  # sha256 of four zero bytes


@pytest.mark.parametrize(
    "old, new",
    [(0.1, math.nextafter(0.1, 1)), (0.0, -0.0), (1, 1.0), (None, 0.0), ("w1 w2", "w1  w2"), (math.nan, None)],
)
def test_a_difference_of_one_bit_or_kind_is_a_line_with_case_name_and_both_values(old, new):
    before, after = {"sft": {"loss": old, "lr": 0.5}}, {"sft": {"loss": new, "lr": 0.5}}
    assert differences(before, after) == [f"sft: loss: {json.dumps(old)} before, {json.dumps(new)} after"]


def test_equal_records_have_no_difference():
    record = {"sft": {"loss": 0.1, "nothing": math.nan, "weight": ZERO}, "ppo": {}}
    assert differences(record, json.loads(json.dumps(record))) == []


def test_what_one_record_lacks_is_a_difference():
    before = {"sft": {"loss": 0.5}, "ppo": {"kl": 1.0}}
    after = {"sft": {"accuracy": 0.25}, "reward": {"loss": 2.0}}
    assert differences(before, after) == [
        "sft: loss: 0.5 before, absent after", "sft: accuracy: absent before, 0.25 after",
        "ppo: only before", "reward: only after",
    ]  # fmt: skip


def test_of_a_case_that_failed_the_failure_is_the_only_line():
    before, after = {"sft": {"loss": 0.5, "lr": 0.5}}, {"sft": {"failed": "RuntimeError: status 2: refused"}}
    assert differences(before, after) == ['sft: failed: absent before, "RuntimeError: status 2: refused" after']


def test_a_record_holds_numbers_but_times_and_digests_of_tensors(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.5, "loss": 0.5}\n{"step": 2, "loss": null}\n')
    (tmp_path / "run.json").write_text('{"anything": 1}')
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert dict(outcome(tmp_path)) == {
        "metrics.jsonl:1 step": 1, "metrics.jsonl:1 loss": 0.5, "metrics.jsonl:2 step": 2, "metrics.jsonl:2 loss": None,
        "model.safetensors w": ZERO,
    }  # fmt: skip


def test_tensors_of_a_state_may_be_renamed_and_not_changed(tmp_path):
    def recorded(**tensors: torch.Tensor) -> dict[str, str]:
        save_file(tensors, tmp_path / "state.safetensors")
        return dict(outcome(tmp_path))

    ones = recorded(moment=torch.ones(2), step=torch.zeros(1))
    assert list(ones) == ["state.safetensors 2 tensors"]
    assert recorded(first=torch.zeros(1), second=torch.ones(2)) == ones
    assert recorded(moment=torch.ones(2), step=torch.ones(1)) != ones
    assert recorded(moment=torch.ones(2, 1), step=torch.zeros(1)) != ones


def test_the_reward_is_that_of_the_token_ids():
    assert even(["w1"] * 2, ["", ""], response_ids=[[2, 3, 4, 6], [5]]) == pytest.approx([0.75 + 0.015, 0.005])
