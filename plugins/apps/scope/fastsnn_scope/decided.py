"""Accuracy against spikes: what a network over time knows after every step, and what leaving early would cost."""

from __future__ import annotations

import math

from fastsnn_core.subject import Data
from fastsnn_scope.curve import chart_svg

NAMED = 8
"""Steps whose numbers stand beside their points, at most."""


def with_commas(value: float) -> str:
    """``12,345``; three digits below a hundred."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cheapest(found: Data) -> Data | None:
    """The exit with the fewest spikes that answers no worse than all steps; None where none saves any."""
    end = found["curve"][-1]
    good = [r for r in found["exits"] if r["accuracy"] >= end["accuracy"] and r["spikes"] < end["spikes"]]
    return min(good, key=lambda r: r["spikes"], default=None)


def says_exit(found: Data) -> str:
    """What leaving early saves, in a sentence."""
    end, row = found["curve"][-1], cheapest(found)
    if row is None:
        return "No confidence that was tried saves spikes at the accuracy of all steps."
    return (
        f"Leaving at a confidence of {row['confidence']:g} answers {row['accuracy']:.1%} right after "
        f"{row['mean_steps']:.2f} steps and {with_commas(row['spikes'])} spikes on average; all {end['step']} steps "
        f"{end['accuracy']:.1%} with {with_commas(end['spikes'])}."
    )


def round_marks(most: float) -> list[float]:
    """Round numbers from 0 up to `most`, four to eight of them: 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10(most / 3))
    step = max(k * power for k in (1, 2, 5) if k * power <= most / 3)
    return [step * i for i in range(int(most / step) + 1)]


def decisions_svg(found: Data) -> str:
    """Accuracy against spikes per inference: after every step (numbered), and by the confidence to leave at."""
    curve, exits = found["curve"], sorted(found["exits"], key=lambda r: float(r["spikes"]))
    most = max(row["spikes"] for row in (*curve, *exits)) or 1.0
    every = -(-len(curve) // NAMED)
    named = [r for r in curve if r["step"] % every == 0 or r is curve[-1]]
    lines = [
        ("after every step", [[r["spikes"], r["accuracy"]] for r in curve]),
        ("leaving at a confidence", [[r["spikes"], r["accuracy"]] for r in exits]),
    ]
    return chart_svg(
        lines,
        "spikes of one inference",
        f"accuracy against spikes of one inference, after each of {len(curve)} steps and by early exit",
        [(at, with_commas(at)) for at in round_marks(most)],
        lambda y: f"{y:.1%}",
        names=[([r["spikes"], r["accuracy"]], str(r["step"])) for r in named],
    )


def decisions_tables(found: Data) -> list[Data]:
    """The curve and the exits as tables."""
    steps = [[str(r["step"]), f"{r['accuracy']:.2%}", with_commas(r["spikes"])] for r in found["curve"]]
    exits = [
        [f"{r['confidence']:g}", f"{r['accuracy']:.2%}", f"{r['mean_steps']:.2f}", with_commas(r["spikes"])]
        for r in found["exits"]
    ]
    return [
        {"title": "After every step", "columns": ["step", "accuracy", "spikes so far"], "rows": steps},
        {"title": "Leaving early", "columns": ["at a confidence of", "accuracy", "steps", "spikes"], "rows": exits},
    ]
