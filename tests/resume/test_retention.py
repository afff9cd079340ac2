"""When a checkpoint is written, and which are kept."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.model.load import load_shared
from rlhf_fast.runtime.errors import UsageError
from tests.resume.cases import prepare, run
from tests.resume.counting import count, names


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [6, 5]),
        ({"save_total_limit": 1}, [6]),
        ({"save_total_limit": None}, [6, 5, 4, 3, 2, 1]),
        ({"metric_for_best_model": "loss"}, [6, 5, 2]),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, [6, 5, 3]),
    ],
)
def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path, options, kept):
    losses = (0.5, 0.1, 0.9, float("nan"), 0.1, 0.8)  # the earlier of equal ones is the best; NaN never is
    count(tmp_path / "whole", losses=losses, **options)
    assert names(tmp_path / "whole") == [f"checkpoint-{step}" for step in kept]
    count(tmp_path / "resumed", losses=losses, until=4, **options)
    count(tmp_path / "resumed", losses=losses, resume="auto", **options)
    assert names(tmp_path / "resumed") == names(tmp_path / "whole")


def test_a_metric_that_no_step_has_is_named_at_the_first_step(tmp_path):
    with pytest.raises(UsageError, match="metric_for_best_model='accuracy' is no metric of a step; there are: loss"):
        count(tmp_path, metric_for_best_model="accuracy")


def test_checkpoints_come_every_save_steps_and_at_the_end(tmp_path):
    run("sft", prepare(tmp_path), tmp_path / "a", save_steps=4, save_total_limit=None)
    assert names(tmp_path / "a") == ["checkpoint-6", "checkpoint-4"]
    run("sft", tmp_path, tmp_path / "b", save_steps=0.4, save_total_limit=None)  # of 6 steps: every 3
    assert names(tmp_path / "b") == ["checkpoint-6", "checkpoint-3"]
    run("sft", tmp_path, tmp_path / "c", save_strategy="no")
    assert names(tmp_path / "c") == []
    shared, adapter = load_shared(str(tmp_path / "a" / "checkpoint-4"), dtype=torch.float32)  # opens as a model
    assert adapter == "sft" and any(bool(p.any()) for k, p in shared.named_parameters("sft") if "lora_B" in k)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pkl"))
