"""Operators with a naive reference each; kernel plugins register faster twins behind them.

=================  ===================================================================================================
`lif_scan`         leaky integration with counts over T, forward and backward (a `torch.library` operator)
`linear_scan`      (gated) linear attention, chunk-parallel; `linear_step` is its recurrent form for one token
`count_linear`     exact integer product of counts with integer weights
`event_linear`     the same from events: only the rows that spiked are read
`input_major`      weights stored so that an event reads one contiguous piece
`spike_linear`     what ``F.linear`` does with a SpikeTensor
`decode`           one token through a whole decoder in integer arithmetic, as one kernel
`exact`            norms, activations, attention and scans in a fixed order: the floats of the integer path
`rows`             everything between two integer products, row by row: how prompts are read
=================  ===================================================================================================

`use` forces an implementation (``with ops.use("naive")``), `paths` says which one each operator took last.
"""

from fastsnn_core.ops import decode, exact, rows
from fastsnn_core.ops.dispatch import OPERATORS, Operator, paths, use
from fastsnn_core.ops.event import count_linear, event_linear, input_major, spike_linear
from fastsnn_core.ops.lif import lif_scan, thresholds
from fastsnn_core.ops.linear_scan import linear_scan, linear_scan_naive, linear_step
from fastsnn_core.ops.rounding import count, derivative

__all__ = [
    "OPERATORS",
    "Operator",
    "count",
    "count_linear",
    "decode",
    "derivative",
    "event_linear",
    "exact",
    "input_major",
    "lif_scan",
    "linear_scan",
    "linear_scan_naive",
    "linear_step",
    "paths",
    "rows",
    "spike_linear",
    "thresholds",
    "use",
]
