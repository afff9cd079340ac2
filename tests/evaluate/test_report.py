"""The page: escaped, self-contained, with the numbers in it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from rlhf_fast.evaluate.compare import Behaviour, Comparison, Pair, RewardComparison
from rlhf_fast.evaluate.run import examples, summary
from rlhf_fast.report import charts
from rlhf_fast.report.page import Report
from rlhf_fast.report.sections import accuracies, calibration, training
from rlhf_fast.runtime.statistics import Interval, wilson

HOSTILE = '<script>alert("x")</script><img src=http://evil.example>&'


def comparison(gold_difference: float = 0.25, pairs: int = 3) -> Comparison:
    proxy = RewardComparison("proxy", 0.125, 1.5, Interval(1.375, 1.1, 1.65, 144), wilson(100.5, 144))
    gold = RewardComparison("gold", 0.5, 0.75, Interval(gold_difference, -0.1, 0.6, 144), wilson(80, 144))
    rows = [Pair(f"prompt number {i}.", f"old {i}", f"new {i}", {"proxy": -1.25}, {"proxy": 2.5}) for i in range(pairs)]
    behaviours = Behaviour(47.2, 0.021, 0.61, 0.012), Behaviour(52.9, 0.007, 0.55, 0.018)
    return Comparison("sft", "ppo", [proxy, gold], 7.93, *behaviours, rows)


def metrics(count: int) -> list[dict[str, float]]:
    return [{"step": i + 1, "objective/scores": 0.1 * i, "val/explained_variance": math.nan} for i in range(count)]


def test_every_text_is_escaped():
    hostile = Pair(
        [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}], HOSTILE, HOSTILE,
        {HOSTILE: 1.0}, {HOSTILE: 1.0},
    )  # fmt: skip
    reward = RewardComparison(HOSTILE, 0, 1, Interval(1, 0, 2, 1), wilson(1, 1))
    fell = RewardComparison(HOSTILE + "2", 0, -1, Interval(-1, -2, 0, 1), wilson(0, 1))
    behaviour = Behaviour(1, 0, 1, 0)
    data = Comparison(HOSTILE, HOSTILE, [reward, fell], 1.0, behaviour, behaviour, [hostile])
    page = Report(HOSTILE, HOSTILE)
    page.add(HOSTILE, summary(data) + examples(data), HOSTILE)
    page.add("x", accuracies([(HOSTILE, wilson(1, 2))]))
    assert "<script" not in page.html() and "<img" not in page.html()
    assert "&lt;script&gt;alert(&quot;x&quot;)" in page.html()


def test_the_page_needs_nothing_from_outside():
    page = Report("ppo against sft", "144 prompts")
    page.add("Summary", summary(comparison()) + training(metrics(30)))
    page.add("Examples", examples(comparison()) + calibration([(0.5, 0.5, 3)]))
    html = page.html()
    assert not re.search(r"https?://|//\w|@import|url\(|<script|<link|\bsrc=|\bhref=", html)
    assert html.startswith("<!doctype html>") and 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_the_numbers_of_a_comparison_appear():
    html = summary(comparison())
    for text in ("0.125", "1.50", "+1.38", "69.8&nbsp;%", "1.10 to 1.65", "+0.250", "7.93 nats", "47.2", "2.1&nbsp;%"):
        assert text in html, text
    assert "Over-optimised" not in html
    assert "proxy rose while gold fell" in summary(comparison(gold_difference=-0.25))


def test_accuracies_show_share_interval_and_count():
    html = accuracies([("proxy", wilson(7, 10))])
    assert "70.0&nbsp;%" in html and "39.7 to 89.2&nbsp;%" in html and ">10<" in html


def test_pairs_stand_in_order_and_the_rest_is_folded():
    html = examples(comparison(pairs=5), shown=2)
    shown, folded = html.split("<details>")
    assert "prompt number 1." in shown and "prompt number 2." not in shown
    assert "The other 3 prompts" in folded and "prompt number 4." in folded
    assert html.index("old 0") < html.index("new 0") < html.index("old 1")
    assert "\N{MINUS SIGN}1.25" in html and "2.50" in html
    assert "<details>" not in examples(comparison(pairs=2))


def test_an_empty_response_is_named():
    pair = Pair("p", " ", "x", {}, {})
    behaviour = Behaviour(1, 0, 1, 0)
    assert "an empty response" in examples(Comparison("a", "b", [], 0.0, behaviour, behaviour, [pair]))


@pytest.mark.parametrize("rows", [[], [{"step": 1, "lr": 2.0}]])
def test_metrics_without_curves_say_what_is_missing(rows):
    html = training(rows)
    assert "No training metrics" in html and "objective/scores" in html and "<svg" not in html


def test_curves_go_from_first_to_last_and_leave_out_what_is_not_recorded():
    html = training(metrics(3))
    assert "0 \N{RIGHTWARDS ARROW} 0.200" in html and "Clip fraction" not in html
    assert "No finite value" in html  # explained variance


def test_a_line_chart_places_its_points():
    svg = ET.fromstring(charts.line_chart([1, 2, 3], [0.0, math.nan, 1.0], "a & b"))
    (line,) = [e for e in svg if e.tag == "polyline"]
    left, bottom = charts.LEFT, charts.HEIGHT - charts.BOTTOM
    assert line.get("points") == f"{left}.0,{bottom}.0 {charts.WIDTH - charts.RIGHT}.0,{charts.TOP}.0"
    assert svg.get("aria-label") == "a & b"


def test_one_point_and_a_constant_can_be_drawn():
    for steps, values in (([1], [0.0]), ([1, 2], [5.0, 5.0]), ([1, 2], [-1e-9, 1e9])):
        assert "nan" not in charts.line_chart(steps, values, "x")
        ET.fromstring(charts.line_chart(steps, values, "x"))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.5, 1]), (-0.5, 0.7, [-0.5, 0, 0.5, 1]), (45, 65, [45, 50, 55, 60, 65]), (2, 2, [1, 1.5, 2, 2.5, 3])],
)
def test_ticks_are_round_and_enclose(low, high, ticks):
    assert charts.nice_ticks(low, high) == pytest.approx(ticks)


def test_moving_average_looks_back():
    assert charts.moving_average([2.0, 4.0, 6.0, 8.0], 2) == [2, 3, 5, 7]


def test_an_interval_bar_spans_its_interval():
    svg = ET.fromstring(charts.interval_bar(Interval(0.75, 0.5, 1.0, 9), "x"))
    (line,) = [e for e in svg if e.get("class") == "line"]
    assert (line.get("x1"), line.get("x2")) == ("60.0", "116.0")


def test_a_calibrated_bin_lies_on_the_diagonal():
    svg = ET.fromstring(charts.calibration_plot([(0.25, 0.25, 4), (0.5, 0.75, 1)]))
    on, off = ((float(c.get("cx")), float(c.get("cy")), float(c.get("r"))) for c in svg if c.tag == "circle")
    assert on[0] + on[1] == pytest.approx(240) and off[0] + off[1] < 200
    assert on[2] > off[2]
    assert "no calibration" in charts.calibration_plot([])
