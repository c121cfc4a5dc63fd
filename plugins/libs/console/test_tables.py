"""Tables of what an exchange can say, and lines of figures."""

from __future__ import annotations

import pytest
import torch

from fastsnn_console.tables import capability_rows, compared, figure_lines, markdown_table


def test_a_table_has_a_row_for_each_case_and_a_bar_in_a_cell_breaks_none() -> None:
    cases = {"softmax": lambda: ("exact", "logits: equal bits"), "a | b": lambda: ("refused", "no | here")}
    rows = capability_rows("trying", cases)
    assert rows == [
        {"what": "softmax", "verdict": "exact", "note": "logits: equal bits"},
        {"what": "a | b", "verdict": "refused", "note": "no | here"},
    ]
    assert markdown_table(rows).splitlines() == [
        "| what | verdict | note |",
        "| --- | --- | --- |",
        "| softmax | exact | logits: equal bits |",
        "| a / b | refused | no / here |",
    ]
    assert [r["what"] for r in capability_rows("trying", cases, only=["a | b"])] == ["a | b"]
    with pytest.raises(KeyError):
        capability_rows("trying", cases, only=["nosuch"])
    assert markdown_table([]).splitlines() == ["|  |", "|"]


def test_a_verdict_is_what_the_numbers_are() -> None:
    x = torch.tensor([1.0, -4.0])
    assert compared(x, x.clone(), 0, "y") == ("exact", "y: equal bits")
    assert compared(x + 4e-7, x, 1e-5, "y") == ("exact", "y: within 1e-05 of the largest (rounding)")
    assert compared(x + 0.4, x, 1e-5, "y") == ("approximate", "y: differs by 0.1 of the largest")
    assert compared(x + 4e-7, x, 0, "y")[0] == "approximate"  # equal bits were asked for
    assert compared(x, x[:1], 0.1, "y") == ("approximate", "y: [2] instead of [1]")
    assert compared(x * torch.nan, x, 1e-5, "y")[0] == "approximate"
    assert compared(x * 0, x * 0, 1e-5, "y")[0] == "exact"


def test_figures_have_five_digits_and_counts_all_of_theirs() -> None:
    assert figure_lines({"perplexity": 6.68512345, "tokens": 1234567, "note": "x"}) == [
        "perplexity: 6.6851", "tokens: 1234567", "note: x"
    ]  # fmt: skip
