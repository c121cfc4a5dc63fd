"""Operators with a naive reference each; kernel plugins register faster twins behind them.

=================  ===================================================================================================
`count`            rounding to integer counts with a surrogate gradient; `derivative` is that gradient
=================  ===================================================================================================

Libraries add their own: `fastsnn_events` (linear layers on spikes), `fastsnn_leaky` (``lif_scan``),
`fastsnn_linear_scan`, `fastsnn_integer` (float operations in a fixed order, fused row operations). `registered` imports
all that are installed and returns the table.

`use` forces an implementation (``with ops.use("naive")``), `paths` says which one each operator took last.
"""

from __future__ import annotations

from fastsnn_core.moved import former
from fastsnn_core.ops.dispatch import OPERATORS, Operator, paths, registered, use
from fastsnn_core.ops.surrogate_gradient import count, derivative

__all__ = [
    "OPERATORS",
    "Operator",
    "count",
    "derivative",
    "paths",
    "registered",
    "use",
]

__getattr__ = former(__name__)  # what moved into a library
