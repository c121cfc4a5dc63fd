"""A report has the columns that something was measured in, and says what a blank cell is not."""

from __future__ import annotations

import re

import pytest

from fastsnn_convert.report import COLUMNS, Report, row

KEPT = row("embed", "Embedding", "kept", "decoder", parameters=64)
SPIKES = {"silent_fraction": 0.25, "spikes_per_channel": 1.5, "steps": 4, "saturation": 0.0}


def report(*rows: dict[str, object]) -> Report:
    return Report({"modules": list(rows), "source": "hf", "neuron": "lif"})


def shown(found: Report) -> list[str]:
    """The headings of the page's table of modules."""
    table = next(t for t in re.findall(r"<table.*?</table>", found.html(), re.S) if ">module<" in t)
    return re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table, re.S)


@pytest.mark.parametrize(
    ("measured", "wanted"),
    [
        ({}, []),
        (SPIKES, ["silent", "spikes", "steps", "saturated"]),
        (SPIKES | {"error": 0.0, "cumulative": 0.5}, ["silent", "spikes", "steps", "saturated", "alone", "so far"]),
        ({"error": 1e-5, "estimated": True}, ["alone"]),
    ],
)
def test_columns_without_a_value_are_left_out(measured: dict[str, object], wanted: list[str]) -> None:
    found = report(KEPT, row("up", "Linear", "converted", "decoder", parameters=8, **measured))
    headings = ["module", "class", "status", "rule", "parameters", *wanted]
    assert list(found.columns().values()) == headings
    assert [h.split(" (")[0] for h in shown(found)][: len(headings)] == headings
    line = next(text for text in found.summary().splitlines() if text.startswith("module"))
    assert re.split(r"  +", line.strip()) == headings


def test_what_is_nought_is_a_value_and_what_is_not_measured_is_blank() -> None:
    """A saturation of 0 is 0.0%; a module that was not measured has no cell, and an estimate says so."""
    found = report(KEPT, row("up", "Linear", "converted", "decoder", **SPIKES, error=1.2e-5, estimated=True))
    embed, up = (t for t in found.summary().splitlines() if t.startswith(("embed", "up")))
    assert re.split(r"  +", embed.strip()) == ["embed", "Embedding", "kept", "decoder", "64"]
    assert re.split(r"  +", up.strip()) == [
        "up",
        "Linear",
        "converted",
        "decoder",
        "25.0%",
        "1.50",
        "4",
        "0.0%",
        "~1.2e-05",
    ]


def test_a_report_without_modules_has_no_column_of_numbers() -> None:
    assert set(report().columns()) <= {"name", "class", "status", "rule"} <= set(COLUMNS)
