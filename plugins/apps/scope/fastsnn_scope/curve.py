"""The curve that `fastsnn tune` measured, as the bundle keeps it: quality against silence, and what was taken."""

from __future__ import annotations

from html import escape
from typing import Any

from torch import nn

from fastsnn_core.subject import Data

WIDE, TALL, EDGE, RIGHT = 480, 200, 44, 22


def tuned(model: nn.Module) -> Data | None:
    """``{"x", "y", "points" [[x, y], …], "chosen" [x, y]}`` of the newest tuning; None where there was none."""
    rows: list[Data] = [
        r for r in getattr(model, "meta", {}).get("milestones", []) if isinstance(r, dict) and "curve" in r
    ]
    found: Data | None = rows[-1]["curve"] if rows else None
    return found if found and found["points"] else None


def curve_svg(found: Data) -> str:
    """The curve as SVG in the colours of the page; x is a share."""
    xs, ys = zip(*found["points"])
    low, high = min(ys), max(ys)
    span = (high - low) or abs(high) or 1.0

    def place(point: list[float]) -> tuple[float, float]:
        x = EDGE + point[0] * (WIDE - EDGE - RIGHT)
        return round(x, 1), round(8 + (high - point[1]) / span * (TALL - EDGE - 8), 1)

    line = " ".join("{},{}".format(*place(p)) for p in sorted(found["points"]))
    dots = "".join('<circle cx="{}" cy="{}" r="2.5" fill="currentColor"/>'.format(*place(p)) for p in found["points"])
    taken = found.get("chosen")
    if taken is not None and low <= taken[1] <= high:
        dots += '<circle cx="{}" cy="{}" r="6" fill="none" stroke="currentColor" stroke-width="2"/>'.format(
            *place(taken)
        )
    floor = TALL - EDGE
    text = 'font-size="11" fill="currentColor"'
    marks = "".join(
        f'<text x="{EDGE + t * (WIDE - EDGE - RIGHT):.1f}" y="{floor + 16}" text-anchor="middle" {text}>{t:.0%}</text>'
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    marks += f'<text x="{EDGE - 4}" y="14" text-anchor="end" {text}>{high:.3g}</text>'
    marks += f'<text x="{EDGE - 4}" y="{floor}" text-anchor="end" {text}>{low:.3g}</text>'
    marks += f'<text x="{WIDE / 2}" y="{TALL - 8}" text-anchor="middle" {text}>{escape(found["x"])}</text>'
    what = f"{found['y']} against {found['x']}, {len(xs)} points"
    return (
        f'<svg viewBox="0 0 {WIDE} {TALL}" width="{WIDE}" style="max-width:100%" role="img" '
        f'aria-label="{escape(what)}"><path d="M{EDGE} 8V{floor}H{WIDE - RIGHT}" fill="none" stroke="currentColor" '
        f'opacity=".4"/><polyline points="{line}" fill="none" stroke="currentColor"/>{dots}{marks}</svg>'
    )


def curve_table(found: Data) -> Data:
    """The same as a table."""
    chosen: Any = found.get("chosen")
    rows = [[f"{x:.1%}", f"{y:.4g}", "taken" if [x, y] == chosen else ""] for x, y in sorted(found["points"])]
    return {"columns": [found["x"], found["y"], ""], "rows": rows}
