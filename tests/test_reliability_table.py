"""docs/reliability.md: every fault names a test, and the fields that may change are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_fast import PPORunConfig, RewardConfig, SFTConfig
from rlhf_fast.runtime.config import fields_that_are

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = [line for line in PAGE.split("## What can go wrong")[1].splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("row", FAULTS)
def test_a_fault_names_its_test(row):
    ((path, name),) = re.findall(r"`(tests/[^`]+)::([^`]+)`", row)
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_fields_that_may_change_are_fields_and_are_named():
    configs = (SFTConfig, RewardConfig, PPORunConfig)
    may_change = {name for config in configs for name in fields_that_are(config, "free", "rounding", "length")}
    named = PAGE.split("## What may change")[1].split("## ")[0]
    rest = {name for name in may_change if not name.startswith("save_") and name not in named}
    assert rest == {"gradient_checkpointing"}  # the old name of activation_checkpointing
    fields = {f for config in configs for f in fields_that_are(config, "result")}
    assert not {name for name in re.findall(r"`(\w+)`", named) if name in fields} - {"loss_mean"}
