"""Tables of what an exchange can say: rows found by running it, as Markdown for a page and for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastsnn_console.progress import Progress


def markdown_table(rows: list[dict[str, str]]) -> str:
    """The rows, columns in the order of the first one's keys."""
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(str(r[n]).replace("|", "/") for n in names) + " |" for r in rows])


def figure_lines(figures: dict[str, Any]) -> list[str]:
    """A line ``name: value`` for each figure, floats to five significant digits."""
    return [
        f"{name}: {value:.5g}" if isinstance(value, float) else f"{name}: {value}" for name, value in figures.items()
    ]


def capability_rows(
    title: str, cases: Mapping[str, Callable[[], tuple[str, str]]], only: Iterable[str] | None = None
) -> list[dict[str, str]]:
    """``{"what", "verdict", "note"}`` of cases that are run, each ``() -> (exact | approximate | refused, note)``."""
    wanted = list(cases) if only is None else list(only)
    rows = []
    with Progress(title, total=len(wanted), unit="cases") as progress:
        for name in wanted:
            verdict, note = cases[name]()
            rows.append({"what": name, "verdict": verdict, "note": note})
            progress.step(note=name)
    return rows


def compared(found: Any, wanted: Any, tolerance: float, what: str) -> tuple[str, str]:
    """The verdict on two tensors: equal bits (`tolerance` 0), equal within `tolerance` of the largest, or neither."""
    if found.shape != wanted.shape:
        return "approximate", f"{what}: {list(found.shape)} instead of {list(wanted.shape)}"
    if not tolerance and bool((found == wanted).all()):
        return "exact", f"{what}: equal bits"
    error = float((found - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0)
    if 0 < tolerance >= error:
        return "exact", f"{what}: within {tolerance:g} of the largest (rounding)"
    return "approximate", f"{what}: differs by {error:.1g} of the largest"
