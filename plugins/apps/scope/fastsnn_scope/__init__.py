"""SpikeScope: one glance at where a model's spikes are, what they cost and what they need.

report(model, "runs/exp_demo")              index.html, a PNG per scope, report.json
scope(model, text="…").report("runs/exp_demo")
scope(model).data()                         everything measured, as plain data
"""

from __future__ import annotations

from fastsnn_scope.scoped import Scoped, report, scope

__version__ = "0.1.0"
__all__ = ["Scoped", "report", "scope"]
