"""What other toolkits make of a NIR graph without a word, and what they write of their own, found by running them."""

from __future__ import annotations

from typing import Any

import numpy as np

READERS = ("", "norse", "sinabs", "snntorch", "spikingjelly")
WRITERS = ("", "norse", "sinabs")
NAMES = {"norse": "Norse 1.1", "sinabs": "sinabs 3.1"}
SPIKING = ("IF", "LIF", "CubaLIF")
SINABS = {
    "IF": "sinabs 3.1 subtracts the threshold, as often as it fits into the membrane, and never resets to v_reset",
    "LIF": "sinabs 3.1 takes tau for a number of steps and decays by exp(-1/tau)",
    "LI": "sinabs 3.1 takes tau for a number of steps and decays by exp(-1/tau)",
}


READ = {
    "norse": ("Affine", "Conv2d", "CubaLIF", "Flatten", "IF", "LIF", "Linear", "SumPool2d"),
    "sinabs": ("Affine", "Conv1d", "Conv2d", "Flatten", "SumPool2d", *SINABS),
}
"""What importers know that pass over other nodes without a word."""
ENDS = ("Input", "Output", "NIRGraph")


def joins(graph: Any) -> list[str]:
    """Nodes that add up edges from different branches; an edge that closes a ring is none."""
    targets: dict[str, list[str]] = {}
    for a, b in graph.edges:
        targets.setdefault(a, []).append(b)

    def behind(name: str) -> set[str]:
        seen, todo = set[str](), [name]
        while todo:
            for target in targets.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    found = []
    for name in graph.nodes:
        sources = [a for a, b in graph.edges if b == name]
        if len(sources) > 1 and len(set(sources) - behind(name)) > 1:
            found.append(name)
    return found


def misread(graph: Any, reader: str) -> list[str]:
    """Nodes that `reader` would run as something else, each with what it makes of it (``test_rivals.py``)."""
    found = []
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        leak, reset = (np.asarray(getattr(node, key, 0.0)) for key in ("v_leak", "v_reset"))
        if reader in ("norse", "snntorch") and kind in SPIKING and reset.any():
            found.append(f"node {name!r} ({kind}): {reader} resets to 0, not to v_reset {float(reset.ravel()[0]):g}")
        if reader == "snntorch" and kind == "IF":
            found.append(f"node {name!r} (IF): snnTorch 1.0 subtracts the threshold instead of resetting to v_reset")
        if kind not in READ.get(reader, (kind,)) and kind not in ENDS:
            found.append(f"node {name!r} ({kind}): {NAMES[reader]} leaves such nodes out")
        if reader == "norse" and kind in ("LIF", "CubaLIF") and leak.any():
            found.append(f"node {name!r} ({kind}): Norse 1.1 runs other membranes where v_leak is not 0")
        if reader == "norse" and kind == "LIF" and not np.allclose(np.asarray(node.r), 1.0):
            found.append(f"node {name!r} ({kind}): Norse takes r for 1, and there are no weights to put it into")
        if reader == "sinabs" and kind in SINABS:
            found.append(f"node {name!r} ({kind}): {SINABS[kind]}")
    if reader == "norse":
        found += [f"node {name!r}: Norse 1.1 runs branches that come together otherwise" for name in joins(graph)]
    return found


def as_meant(name: str, kind: str, values: dict[str, np.ndarray], writer: str, dt: float) -> str:
    """Put right what `writer` wrote otherwise than it runs it (in place); a reason where that cannot be said.

    Norse 1.1 writes w_in = 1 of a LIF cell that adds its input to the current whole: w_in = tau_syn / dt.
    """
    if writer == "norse" and kind in ("CubaLIF", "CubaLI") and np.all(values["w_in"] == 1.0):
        values["w_in"] = np.asarray(values["tau_syn"], dtype=np.float64) / dt
    if writer == "sinabs" and kind in SINABS:
        return f"node {name!r} ({kind}): {SINABS[kind]}, which NIR cannot say"
    return ""
