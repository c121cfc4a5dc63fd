"""The curve as a picture: perplexity and decoding speed against the silent fraction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


def draw_curve(data: dict[str, Any], path: str | Path) -> None:
    """Write a PNG of what `Tuned.data` holds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    x = [100 * p["silent_fraction"] for p in data["curve"]]
    upper.plot(x, [p["perplexity"] for p in data["curve"]], marker="o", color=BLUE)
    upper.set_ylabel("perplexity, held-out")
    if max(p["perplexity"] for p in data["curve"]) > 3 * min(p["perplexity"] for p in data["curve"]):
        upper.set_yscale("log")
        upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        upper.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        upper.yaxis.set_minor_locator(NullLocator())
    upper.set_title("sparsity as a dial", loc="left")
    for key, colour, name in (
        ("tokens_per_second", GREEN, "as it is"),
        ("tokens_per_second_w8a", ORANGE, "INT8 weights"),
    ):
        row = [p[key] for p in data["curve"]]
        if all(v is not None for v in row):
            lower.plot(x, row, marker="o", color=colour, label=name)
    lower.set_ylabel("decoded tokens/s, one stream")
    lower.set_xlabel("silent inputs, %")
    lower.set_ylim(bottom=0)
    if lower.lines:
        lower.legend(frameon=False)
    for axis in (upper, lower):
        axis.axvline(100 * data["after"]["silent_fraction"], color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def draw_losses(data: dict[str, Any], path: Path) -> None:
    """Perplexity, as a multiple of the dense model's, against silent bytes; the goals are marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axis = figure.subplots()
    rows = data["curve"]
    axis.plot([100 * m["silent_bytes"] for m in rows], [m["ratio"] for m in rows], marker="o", color=BLUE)
    for loss, m in data["at"].items():
        axis.axhline(1 + float(loss), color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
        if m is not None:
            axis.plot([100 * m["silent_bytes"]], [m["ratio"]], marker="D", color=ORANGE)
            axis.annotate(
                f"{m['silent_bytes']:.1%}", (100 * m["silent_bytes"], m["ratio"]), (6, -12), textcoords="offset points"
            )
    axis.set_title(f"silent bytes at a loss, criterion {data['criterion']}", loc="left")
    axis.set_xlabel("silent bytes, % of the projections' weights (diamonds: text that took no part)")
    axis.set_ylabel("perplexity / dense perplexity")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
