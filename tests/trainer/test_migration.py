"""docs/migration.md says of every field and argument of TRL's what becomes of it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from rlhf_fast.trainer import PPOTrainer
from rlhf_fast.trainer.fields import fields_used
from tests.trainer.trl_fields import ARGUMENTS, OTHERWISE, OWN_FIELDS

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
NAMED = {name for row in ROWS for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("name", (*OWN_FIELDS, *ARGUMENTS, *fields_used("unneeded", "inert")))
def test_the_page_has_a_row_for(name):
    assert name in NAMED


def test_the_trainer_takes_trls_arguments_in_trls_order():
    assert tuple(inspect.signature(PPOTrainer).parameters) == ARGUMENTS


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_default_that_differs_is_explained(name):
    assert name in PAGE.split("## Where the result differs")[1]
