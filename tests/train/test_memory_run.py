"""`ppo --memory_profile`: the numbers of the run, and what it leaves beside them."""

from __future__ import annotations

import json

from rlhf_fast.profiling.memory_table import MemoryTable
from tests.resume.cases import outcome, prepare, run


def test_a_measured_run_has_the_numbers_of_one_that_is_not_and_leaves_prediction_and_page(tmp_path, capsys):
    """The reward draws from the generators of Python, NumPy and torch: measuring and planning use up no number."""
    folder = prepare(tmp_path)
    options = {"total_episodes": 12, "save_strategy": "no"}
    run("ppo", folder, tmp_path / "plain", **options)
    run("ppo", folder, tmp_path / "measured", memory_profile=True, **options)
    plain, measured = outcome(tmp_path / "plain"), outcome(tmp_path / "measured")
    assert plain["metrics"] == measured["metrics"] and len(plain["metrics"]) == 2
    facts = json.loads((tmp_path / "measured" / "memory.json").read_text())
    found, predicted = MemoryTable.from_json(facts["measured"]), MemoryTable.from_json(facts["predicted"])
    assert found.phases == predicted.phases
    for owner in ("policy adapter", "critic adapter and head", "reward adapter and head"):
        assert found.bytes["scoring"][owner] == predicted.bytes["scoring"][owner] > 0
    shown = capsys.readouterr().out
    assert "Predicted and measured" in shown and "peak of the run" in shown
    assert "predicted" in (tmp_path / "measured" / "memory.html").read_text()
