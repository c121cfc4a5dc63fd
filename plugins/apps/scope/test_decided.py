"""Accuracy against spikes: what the page says of it and draws, from figures that can be checked by hand."""

from __future__ import annotations

import re

import pytest

from fastsnn_scope.decided import cheapest, decisions_svg, decisions_tables, round_marks, says_exit
from fastsnn_scope.page import decisions_section
from fastsnn_scope.saved import quality_tiles


def row(confidence: float, accuracy: float, spikes: float) -> dict[str, float]:
    return {"confidence": confidence, "accuracy": accuracy, "mean_steps": spikes / 100, "spikes": spikes}


def decided(*exits: dict[str, float], steps: int = 3) -> dict[str, object]:
    curve = [{"step": t + 1, "accuracy": 0.5 + 0.1 * t, "spikes": 100.0 * (t + 1)} for t in range(steps)]
    return {"samples": 20, "curve": curve, "exits": list(exits), "decision_step": 1.5}


def test_the_cheapest_exit_loses_nothing():
    best = row(0.8, 0.7, 150.0)
    found = decided(row(0.5, 0.65, 110.0), best, row(0.9, 0.7, 200.0))
    assert cheapest(found) == best
    assert "confidence of 0.8 answers 70.0% right after 1.50 steps and 150 spikes" in says_exit(found)
    assert "all 3 steps 70.0% with 300" in says_exit(found)
    worse = decided(row(0.5, 0.65, 110.0), row(0.99, 0.7, 300.0))
    assert cheapest(worse) is None
    assert "No confidence" in says_exit(worse)


@pytest.mark.parametrize(
    ("most", "marks"),
    [(3108, [0, 1000, 2000, 3000]), (5.9, [0, 1, 2, 3, 4, 5]), (60, [0, 20, 40, 60]), (3, [0, 1, 2, 3])],
)
def test_the_axis_has_round_numbers(most, marks):
    assert round_marks(most) == pytest.approx(marks)


@pytest.mark.parametrize("steps", [2, 100])
def test_everything_that_is_drawn_lies_inside_the_picture(steps):
    svg = decisions_svg(decided(row(0.5, 0.4, 110.0), row(0.9, 0.5, 150.0), steps=steps))
    wide, tall = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    for x, y in re.findall(r'<(?:circle c|text )x="([-\d.]+)" c?y="([-\d.]+)"', svg):
        assert 0 <= float(x) <= wide
        assert 8 <= float(y) <= tall, (x, y)
    numbers = re.findall(r'middle"[^>]*>(\d+)</text>', svg)
    assert str(steps) in numbers, "the last step has its number"
    assert svg.count("<circle") == steps + 2 + 2  # and two in the legend


def test_a_network_without_spikes_or_that_never_changes_is_drawn():
    flat = decided(row(0.5, 1.0, 0.0), steps=2)
    for r in flat["curve"]:
        r |= {"accuracy": 1.0, "spikes": 0.0}
    assert "nan" not in decisions_svg(flat)


def test_the_section_says_it_without_the_picture():
    found = decided(row(0.8, 0.7, 150.0))
    page = decisions_section({"decisions": found})
    for text in ("One of the 20 samples is worth 5.0%", "from step 1.50 on", "70.00%", "<svg"):
        assert text in page
    assert [t["rows"] for t in decisions_tables(found)][1] == [["0.8", "70.00%", "1.50", "150"]]
    assert decisions_section({}) == decisions_section({"decisions": None}) == ""
    (tile,) = quality_tiles({"decisions": found})
    assert (tile["value"], tile["number"]) == ("1.50 of 3", 1.5)
