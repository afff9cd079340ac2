"""Growth of an iteration: what is reported from given numbers, and that a size runs."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from benchmarks import scaling
from benchmarks.scaling import Point
from benchmarks.vs_trl.jobs import Job
from benchmarks.vs_trl.models import make_classifier, make_tiny

POINTS = [Point(8, 32, 4.0, 1.0, 2**30), Point(8, 64, 6.0, 1.8, 1.5 * 2**30)]


def test_a_table_shows_growth_and_the_share_of_the_floor():
    cells = [list(column.cells) for column in scaling.table("response length", POINTS).columns]
    assert cells == [
        ["32", "64"], ["768", "1024 (x 1.33)"], ["4", "6 (x 1.50)"], ["1", "1.8 (x 1.80)"], ["1", "1.5 (x 1.50)"],
        ["25%", "30%"],
    ]  # fmt: skip


def test_files_hold_the_points(tmp_path):
    scaling.write({"batch": POINTS}, tmp_path)
    rows = list(csv.DictReader((tmp_path / "scaling.csv").open()))
    assert [(row["doubled"], row["length"], float(row["seconds"])) for row in rows] == [
        ("batch", "32", 4.0), ("batch", "64", 6.0),
    ]  # fmt: skip
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_process_measures_the_last_iteration_of_its_job(tmp_path, monkeypatch):
    model = make_tiny(tmp_path / "tiny")
    classifier = make_classifier(model, tmp_path / "classifier")
    asked, result = tmp_path / "job.json", tmp_path / "result.json"
    Job(str(model), str(classifier), [[5, 6, 7], [8, 9]], 4, False, 2, 1, 1, "policy_head", None).write(asked)
    monkeypatch.setattr(sys, "argv", ["scaling", "--job", str(asked), str(result)])
    scaling.main()
    point = Point(**json.loads(result.read_text()))
    assert (point.batch, point.length) == (2, 4)
    assert 0 < point.floor < point.seconds and point.memory > 0
