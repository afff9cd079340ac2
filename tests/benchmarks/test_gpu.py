"""What `python -m benchmarks.gpu` does without a GPU: the same script at toy size, and what it says of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.sections import SECTIONS, Section

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_dry_run_runs_every_section_but_the_stages(tmp_path):
    """The stages are run by `tests.versions`."""
    sections = [name for name in SECTIONS if name != "pipeline"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", "gpu.json", "--sections", *sections]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["section"] for row in rows if row.get("status") == "ok"} == set(sections)
    assert not [row for row in rows if "trace" in row] and "every section ran" in done.stdout
    (step,) = (row for row in rows if row.get("what", "").startswith("decode toy"))
    assert step["prefill_ms"] > 0 and step["graph"] == "it runs on cpu"


def run(monkeypatch, tmp_path, *, section: Section) -> tuple[int, list[dict]]:
    monkeypatch.setitem(SECTIONS, "probe", section)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--sections", "probe", "--out", str(tmp_path / "gpu.json")])
    monkeypatch.setattr(gpu, "SECTIONS", SECTIONS)
    return gpu.main(), json.loads((tmp_path / "gpu.json").read_text())


def test_a_section_that_fails_or_takes_too_long_leaves_its_rows_and_a_status(monkeypatch, tmp_path):
    def fails(bench):
        bench.tell("first", number=1.0)
        raise ValueError("broken")

    def hangs(bench):
        bench.tell("first", number=2.0)
        time.sleep(60)

    status, rows = run(monkeypatch, tmp_path, section=Section(fails, 30))
    assert status == 1 and rows[0] == {"section": "probe", "what": "first", "number": 1.0}
    assert rows[1]["error"] == "ValueError: broken" and rows[2]["status"] == "failed with status 1"
    status, rows = run(monkeypatch, tmp_path, section=Section(hangs, 3))
    assert status == 1 and rows[0]["number"] == 2.0 and rows[1]["status"] == "stopped at its deadline of 6 s"


def test_without_a_device_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 1 and "No CUDA device" in capsys.readouterr().out
