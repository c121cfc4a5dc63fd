"""Operators with a naive reference each; kernel plugins register faster twins behind them.

=================  ===================================================================================================
`count_linear`     exact integer product of counts with integer weights
`event_linear`     the same from events: only the rows that spiked are read
`input_major`      weights stored so that an event reads one contiguous piece
`spike_linear`     what ``F.linear`` does with a SpikeTensor
`count`            rounding to integer counts with a surrogate gradient; `derivative` is that gradient
=================  ===================================================================================================

Libraries add their own: `fastsnn_leaky` (``lif_scan``), `fastsnn_linear_scan`, `fastsnn_integer` (float operations in a
fixed order, fused row operations). `registered` imports all that are installed and returns the table.

`use` forces an implementation (``with ops.use("naive")``), `paths` says which one each operator took last.
"""

from __future__ import annotations

from typing import Any

from fastsnn_core.moved import attribute
from fastsnn_core.ops.dispatch import OPERATORS, Operator, paths, registered, use
from fastsnn_core.ops.event import count_linear, event_linear, input_major, spike_linear
from fastsnn_core.ops.surrogate_gradient import count, derivative

__all__ = [
    "OPERATORS",
    "Operator",
    "count",
    "count_linear",
    "derivative",
    "event_linear",
    "input_major",
    "paths",
    "registered",
    "spike_linear",
    "use",
]


def __getattr__(name: str) -> Any:
    """What moved into a library, under its old name and with a warning."""
    return attribute(__name__, name)
