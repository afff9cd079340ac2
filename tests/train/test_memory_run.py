"""`ppo --memory_profile`: the numbers of the run, and what it leaves beside them."""

from __future__ import annotations

import json

from rlhf_fast.profiling.memory_table import MemoryTable
from tests.resume.cases import outcome, prepare, run


def test_a_measured_run_has_the_numbers_of_one_that_is_not_and_leaves_a_page(tmp_path, capsys):
    """The reward draws from the generators of Python, NumPy and torch: measuring uses up no number."""
    folder = prepare(tmp_path)
    options = {"total_episodes": 12, "save_strategy": "no"}
    run("ppo", folder, tmp_path / "plain", **options)
    run("ppo", folder, tmp_path / "measured", memory_profile=True, **options)
    plain, measured = outcome(tmp_path / "plain"), outcome(tmp_path / "measured")
    assert plain["metrics"] == measured["metrics"] and len(plain["metrics"]) == 2
    facts = json.loads((tmp_path / "measured" / "memory.json").read_text())
    found = MemoryTable.from_json(facts["measured"])
    assert found.bytes["scoring"]["reward adapter and head"] == found.bytes["scoring"]["critic adapter and head"] > 0
    assert "Memory at the peak" in capsys.readouterr().out
    assert "reward adapter" in (tmp_path / "measured" / "memory.html").read_text()
