"""What other toolkits make of a NIR graph without a word, found by running them (``test_rivals.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

READERS = ("", "norse", "snntorch", "spikingjelly")
SPIKING = ("IF", "LIF", "CubaLIF")


def misread(graph: Any, reader: str) -> list[str]:
    """Nodes that `reader` would run as something else, each with what it makes of it."""
    found = []
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        leak, reset = (np.asarray(getattr(node, key, 0.0)) for key in ("v_leak", "v_reset"))
        if reader in ("norse", "snntorch") and kind in SPIKING and reset.any():
            found.append(f"node {name!r} ({kind}): {reader} resets to 0, not to v_reset {float(reset.ravel()[0]):g}")
        if reader == "snntorch" and kind == "IF":
            found.append(f"node {name!r} (IF): snnTorch 1.0 subtracts the threshold instead of resetting to v_reset")
        if reader == "norse" and kind == "Delay":
            found.append(f"node {name!r} (Delay): Norse 1.1 leaves delays out")
        if reader == "norse" and kind in ("LIF", "CubaLIF") and leak.any():
            found.append(f"node {name!r} ({kind}): Norse 1.1 runs other membranes where v_leak is not 0")
        if reader == "norse" and kind in ("LI", "LIF") and not np.allclose(np.asarray(node.r), 1.0):
            found.append(f"node {name!r} ({kind}): Norse takes r for 1, and there are no weights to put it into")
    return found
