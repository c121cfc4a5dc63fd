"""The curve that `fastsnn tune` measured, as the bundle keeps it: quality against silence, and what was taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    what = f"{found['y']} against {found['x']}, {len(found['points'])} points"
    marks = [(t, f"{t:.0%}") for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    lines = [("", sorted(found["points"]))]
    return chart_svg(lines, found["x"], what, marks, lambda y: f"{y:.3g}", ring=found.get("chosen"))


def chart_svg(
    lines: Sequence[tuple[str, Sequence[Sequence[float]]]],
    x: str,
    what: str,
    marks: Sequence[tuple[float, str]],
    y_text: Callable[[float], str],
    *,
    names: Sequence[tuple[Sequence[float], str]] = (),
    ring: Sequence[float] | None = None,
) -> str:
    """Lines of points ``[x, y]`` as SVG in the colours of the page; the second one is dashed, with hollow points.

    The axis goes from the first of `marks` (places and their texts) to the last, or to the last point, with `x` below
    it; `what` is read out. `names` stand above points, `ring` is drawn around one.
    """
    ys = [point[1] for _, points in lines for point in points]
    low, high = min(ys), max(ys)
    span, begin = (high - low) or abs(high) or 1.0, marks[0][0]
    width = max(marks[-1][0], *(point[0] for _, points in lines for point in points)) - begin or 1.0
    top, under = (20, 44) if names else (8, 0)  # names need room above, and what is lowest must not lie on the axis

    def place(point: Sequence[float]) -> tuple[float, float]:
        across = EDGE + (point[0] - begin) / width * (WIDE - EDGE - RIGHT)
        return round(across, 1), round(top + (high - point[1]) / span * (TALL - EDGE - top - under), 1)

    drawn, text, floor = "", 'font-size="11" fill="currentColor"', TALL - EDGE
    for i, (name, points) in enumerate(lines):
        line = " ".join("{},{}".format(*place(p)) for p in points)
        ink = 'fill="none" stroke="currentColor"' + (' stroke-dasharray="4 3" opacity=".75"' if i else "")
        dot = 'r="3" fill="var(--paper)" stroke="currentColor"' if i else 'r="2.5" fill="currentColor"'
        drawn += f'<polyline points="{line}" {ink}/>'
        drawn += "".join('<circle cx="{}" cy="{}" {}/>'.format(*place(p), dot) for p in points)
        if name:
            y = floor - 8 - 16 * (len(lines) - 1 - i)
            drawn += f'<path d="M{WIDE - 190} {y - 4}h24" {ink}/><circle cx="{WIDE - 178}" cy="{y - 4}" {dot}/>'
            drawn += f'<text x="{WIDE - 160}" y="{y}" {text}>{escape(name)}</text>'
    for point, name in names:
        across, down = place(point)
        drawn += f'<text x="{across}" y="{down - 8}" text-anchor="middle" {text}>{escape(name)}</text>'
    if ring is not None and low <= ring[1] <= high:
        drawn += '<circle cx="{}" cy="{}" r="6" fill="none" stroke="currentColor" stroke-width="2"/>'.format(
            *place(ring)
        )
    for at, told in marks:
        drawn += f'<text x="{place([at, low])[0]}" y="{floor + 16}" text-anchor="middle" {text}>{escape(told)}</text>'
    for level in (high, low):
        down = place([begin, level])[1] + 4
        drawn += f'<text x="{EDGE - 4}" y="{down}" text-anchor="end" {text}>{escape(y_text(level))}</text>'
    drawn += f'<text x="{WIDE / 2}" y="{TALL - 8}" text-anchor="middle" {text}>{escape(x)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDE} {TALL}" width="{WIDE}" role="img" '
        f'aria-label="{escape(what)}"><path d="M{EDGE} 8V{floor}H{WIDE - RIGHT}" fill="none" stroke="currentColor" '
        f'opacity=".4"/>{drawn}</svg>'
    )


def curve_table(found: Data) -> Data:
    """The same as a table."""
    chosen: Any = found.get("chosen")
    rows = [[f"{x:.1%}", f"{y:.4g}", "taken" if [x, y] == chosen else ""] for x, y in sorted(found["points"])]
    return {"columns": [found["x"], found["y"], ""], "rows": rows}
