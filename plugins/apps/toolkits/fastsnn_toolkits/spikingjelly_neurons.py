"""SpikingJelly's neurons, by their names and parameters (SpikingJelly 2.0): IF, LIF and parametric LIF nodes."""

from __future__ import annotations

from typing import Any

import torch

from fastsnn_conversion.context import ConversionError
from fastsnn_toolkits.rows import Row, one_value

KNOWN = {
    "IFNode": "if", "SimpleIFNode": "if", "LIFNode": "lif", "SimpleLIFNode": "lif", "ParametricLIFNode": "plif",
}  # fmt: skip


def spikingjelly_neuron(name: str, module: Any) -> Row:
    """A node as a `spikes` layer; a reset to v_reset is one to 0 of membranes that count from v_reset."""
    kind = type(module).__name__
    who = f"{name} (spikingjelly {kind})"
    if kind not in KNOWN:
        raise ConversionError(f"{who} has no equal here; known: {', '.join(KNOWN)}")
    hard = module.v_reset is not None
    base = one_value(who, "v_reset", module.v_reset) if hard else 0.0
    theta = one_value(who, "v_threshold", module.v_threshold) - base
    if theta <= 0:
        raise ConversionError(f"{who}: v_threshold lies {-theta:g} below v_reset")
    table: dict[str, Any] = {"hard_reset": hard, "fixed": True, "threshold": 1.0}
    row = Row(name, f"spikingjelly.{kind}", {"op": "spikes", "neuron": table}, theta=torch.tensor([theta]))
    if KNOWN[kind] == "if":
        table |= {"kind": "lif", "leaky": False}
        return row
    if KNOWN[kind] == "plif":
        table |= {"kind": "plif", "decay_input": bool(module.decay_input)}
        row.tensors = {"neuron.w": module.w.detach().clone().reshape(1)}
        return row
    tau = one_value(who, "tau", module.tau)
    if not 1.0 < tau <= 1e4:
        raise ConversionError(f"{who}: tau is {tau:g}; possible: more than 1, at most 10000")
    table |= {"kind": "lif", "tau": tau} | ({"convention": "spikingjelly"} if module.decay_input else {})
    return row
