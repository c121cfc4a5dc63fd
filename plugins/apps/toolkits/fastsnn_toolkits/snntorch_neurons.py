"""snnTorch's neurons, by their names and parameters (snnTorch 1.0): Leaky, Synaptic, RLeaky."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsnn_conversion.context import ConversionError
from fastsnn_toolkits.rows import Row, one_value, tau_of

KNOWN = ("Leaky", "Synaptic", "RLeaky")
RESETS = {0: False, 1: True}


def snntorch_neuron(name: str, module: Any) -> Row:
    """A neuron as a `spikes` layer with ``convention = "snntorch"``, or its form without a delayed reset."""
    kind = type(module).__name__
    who = f"{name} (snntorch.{kind})"
    if kind not in KNOWN:
        raise ConversionError(f"{who} has no equal here; known: {', '.join(KNOWN)}")
    for flag in ("inhibition", "state_quant"):
        if getattr(module, flag, False):
            raise ConversionError(f"{who}: {flag} has no equal here")
    state = {key: getattr(module, key) for key in ("beta", "alpha", "threshold") if hasattr(module, key)}
    state |= {"reset_mechanism_val": module.reset_mechanism_val, "graded_spikes_factor": module.graded_spikes_factor}
    return of_constants(name, kind, state, bool(module.reset_delay), getattr(module, "recurrent", None))


def of_constants(name: str, kind: str, state: dict[str, Any], delay: bool, recurrent: Any = None) -> Row:
    """A neuron from the constants that its module (and its state dict) has."""
    who = f"{name} (snntorch.{kind})"
    reset = int(torch.as_tensor(state["reset_mechanism_val"]))
    if reset not in RESETS:
        raise ConversionError(f"{who}: reset_mechanism 'none' has no equal here; 'subtract' and 'zero' have")
    if one_value(who, "graded_spikes_factor", state.get("graded_spikes_factor", 1.0)) != 1.0:
        raise ConversionError(f"{who}: graded spikes have no equal here")
    beta = min(1.0, max(0.0, one_value(who, "beta", state["beta"])))
    table: dict[str, Any] = {"hard_reset": RESETS[reset], "fixed": True, "threshold": 1.0}
    decay = tau_of(who, "beta", beta)
    if kind == "Leaky" and not delay and not table["hard_reset"]:
        raise ConversionError(
            f"{who}: reset_delay=False with reset_mechanism 'subtract' asks for twice the threshold after a step that "
            "left more than one; 'zero', and delayed resets, have an equal here"
        )
    if kind == "Leaky":
        table |= {"kind": "lif"} | decay | ({"convention": "snntorch"} if delay else {})
    elif not delay or "leaky" in decay:
        raise ConversionError(f"{who}: {'beta = 1' if delay else 'reset_delay=False'} has no equal here; Leaky's has")
    elif kind == "Synaptic":
        alpha = min(1.0, max(0.0, one_value(who, "alpha", state["alpha"])))
        synapse = tau_of(who, "alpha", alpha)
        if "tau" not in synapse:
            raise ConversionError(f"{who}: alpha = 1 has no equal here")
        table |= {"kind": "synaptic", "tau_synapse": synapse["tau"], "convention": "snntorch"} | decay
    else:
        table |= {"kind": "recurrent_lif", "convention": "snntorch"} | decay
    theta = torch.as_tensor(state["threshold"], dtype=torch.float32).detach().flatten()
    row = Row(name, f"snntorch.{kind}", {"op": "spikes", "neuron": table}, theta=theta)
    if kind == "RLeaky":
        row.tensors = recurrent_tensors(who, recurrent)
    return row


def recurrent_tensors(who: str, recurrent: Any) -> dict[str, Tensor]:
    """Weights that carry spikes back: dense ones with a bias, or one for each neuron."""
    if (weight := getattr(recurrent, "weight", None)) is not None and weight.ndim == 2:
        bias = getattr(recurrent, "bias", None)
        kept = torch.zeros(len(weight)) if bias is None else bias.detach().clone()
        return {"neuron.recurrent.weight": weight.detach().clone(), "neuron.recurrent.bias": kept}
    if (v := getattr(recurrent, "V", None)) is not None and v.ndim == 1:
        return {"neuron.recurrent.weight": torch.diag(v.detach()), "neuron.recurrent.bias": torch.zeros(len(v))}
    raise ConversionError(f"{who}: recurrence through {type(recurrent).__name__} has no equal here; linear layers have")


def is_state(source: Any) -> bool:
    """Is this a state dict of a network of snnTorch's neurons?"""
    return isinstance(source, dict) and any(str(k).endswith(".reset_mechanism_val") for k in source)


def rows_of_state(state: dict[str, Tensor]) -> list[Row]:
    """A network of linear layers and neurons from its state dict, in the order of its keys.

    What a state dict does not say is taken as snnTorch's defaults have it: the reset is delayed. Convolutions are
    refused: their strides and the pools between them are in the network's code alone.
    """
    parts: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        owner, _, leaf = str(key).rpartition(".")
        if owner.endswith(".recurrent"):
            owner, leaf = owner.removesuffix(".recurrent"), f"recurrent.{leaf}"
        parts.setdefault(owner, {})[leaf] = value
    rows = []
    for name, found in parts.items():
        if "reset_mechanism_val" in found:
            recurrent = {k.removeprefix("recurrent."): v for k, v in found.items() if k.startswith("recurrent.")}
            kind = "RLeaky" if recurrent else "Synaptic" if "alpha" in found else "Leaky"
            carrier = type("Recurrence", (), recurrent) if recurrent else None
            rows.append(of_constants(name, kind, found, True, carrier))
            rows[-1].note = "reset delayed, as is snnTorch's default"
        elif set(found) <= {"weight", "bias"} and getattr(found.get("weight"), "ndim", 0) == 2:
            weight = found["weight"]
            table = {"op": "linear", "size": len(weight), "bias": "bias" in found}
            rows.append(Row(name, "Linear", table, {k: v.detach().clone() for k, v in found.items()}))
        else:
            says = ", ".join(f"{k} {list(getattr(v, 'shape', []))}" for k, v in found.items())
            raise ConversionError(
                f"{name} of the state dict ({says}) does not say what layer it is; give spec= (and names=), or a module"
            )
    return rows
