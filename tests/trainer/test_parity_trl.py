"""TRL 1.12's own update and ours on the same recorded rollout; runs where TRL's environment is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import environments, parity_trl

ROOT = Path(__file__).parents[2]
made = pytest.mark.skipif(
    not environments.is_made(parity_trl.TRL), reason=f"no TRL in {parity_trl.TRL}; benchmarks.parity_trl makes it"
)
LIMIT = 2e-5  # absolute, of columns between 1 and 10
WEIGHTS = 2e-5  # absolute; an update moves weights by up to num_ppo_epochs * learning_rate = 3e-3


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    parity_trl.make_case(folder)
    return folder


@made
@pytest.mark.slow
@pytest.mark.parametrize("mode", parity_trl.MODES)
def test_every_column_and_the_updated_weights_are_trls(case, mode):
    rows = parity_trl.compare(case, mode, environments.python_of(parity_trl.TRL))
    assert {row.quantity for row in rows} > set(parity_trl.COLUMNS)
    for row in rows:
        assert row.scale > 1e-3, f"{row.quantity} is too small to show a mistake"
        assert row.largest < (WEIGHTS if "weights" in row.quantity else LIMIT), row


def test_the_page_names_every_quantity():
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE))
    assert {*parity_trl.COLUMNS, "policy weights after the update", "value weights after the update"} <= named
