"""What one module of a chain means: a `Row`; torch's own layers, by the class that they are or derive from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_model_sequential.describe import convolution

TOOLKITS = ("snntorch", "spikingjelly", "norse")
BOXES = ("Sequential", "SequentialState", "SeqToANNContainer", "StepModeContainer", "MultiStepContainer")
SAME = ("identity", "dropout")
SCALED = (*SAME, "flatten", "max_pool", "avg_pool", "adaptive_avg_pool")
"""Layers f with f(a x) = a f(x) for a > 0: a threshold in front of which they stand may move through them."""


@attrs.define
class Row:
    """A module as a layer of `sequential`: its table, its tensors by our names, and a neuron's threshold."""

    name: str
    kind: str
    layer: dict[str, Any]
    tensors: dict[str, Tensor] = attrs.field(factory=dict)
    theta: Tensor | None = None
    note: str = ""

    @property
    def op(self) -> str:
        """The layer's operation."""
        return str(self.layer["op"])


def toolkit_of(module: nn.Module) -> str:
    """The toolkit whose class this is, or ''."""
    top = type(module).__module__.partition(".")[0]
    return top if top in TOOLKITS else ""


def chain(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers and neurons by name, in the order of registration; containers are opened."""
    for name, child in module.named_children():
        where = f"{prefix}{name}"
        if type(child).__name__ in BOXES:
            yield from chain(child, f"{where}.")
        elif type(child).__name__ == "Lift" and toolkit_of(child) == "norse":
            yield f"{where}.lifted_module", child.lifted_module  # type: ignore[misc]
        else:
            yield where, child


def torch_name(module: nn.Module) -> str:
    """The name of the class of torch that a module is or derives from, as toolkits' own layers do."""
    known = (c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules."))
    return next((name for name in known if name != "Module"), "")


def size_list(value: Any) -> list[int]:
    """A size as a list."""
    return [int(n) for n in (value if isinstance(value, tuple | list) else (value,))]


def layer_of(name: str, module: Any) -> Row:
    """A layer of torch, in evaluation."""
    kind = torch_name(module) or type(module).__name__  # SpikingJelly's Dropout derives from nothing of torch's
    made: dict[str, Any] | None = None
    weighted = False
    if kind == "Linear":
        made, weighted = {"op": "linear", "size": module.out_features, "bias": module.bias is not None}, True
    elif kind in ("Conv1d", "Conv2d", "Conv3d"):
        found = convolution(module, kind.lower())
        if found is not None:
            made = {"op": kind.lower(), **{k: v for k, v in attrs.asdict(found).items() if v is not None and k != "op"}}
            made, weighted = {k: list(v) if isinstance(v, tuple) else v for k, v in made.items()}, True
    elif kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d") and module.running_mean is not None:
        made, weighted = {"op": "batch_norm", "eps": module.eps, "affine": module.affine}, True
    elif kind.startswith("MaxPool") and not module.ceil_mode:
        more = {"dilation": size_list(module.dilation)}
        made = {"op": "max_pool"} | window(module) | more
    elif kind.startswith("AvgPool") and not module.ceil_mode and module.count_include_pad:
        made = {"op": "avg_pool"} | window(module) if getattr(module, "divisor_override", None) is None else None
    elif kind.startswith("AdaptiveAvgPool"):
        dims = int(kind[-2])
        shape = size_list(module.output_size)
        made = {"op": "adaptive_avg_pool", "shape": shape * dims if len(shape) == 1 else shape}
    elif kind == "Flatten" and module.start_dim == 1 and module.end_dim == -1:
        made = {"op": "flatten"}
    elif kind.startswith("Dropout"):
        made = {"op": "dropout", "p": float(module.p)} if kind == "Dropout" else {"op": "identity"}
    elif kind in ("Identity", "ReLU"):
        made = {"op": kind.lower()}
    if made is None:
        raise ConversionError(
            f"{name} ({type(module).__module__}.{type(module).__name__}) is not known here as a layer of a spiking "
            "network; known: Linear, Conv1d to 3d, BatchNorm, MaxPool, AvgPool, AdaptiveAvgPool, Flatten(1), Dropout, "
            "ReLU, and the neurons that docs/interop.md lists"
        )
    tensors = {k: v.detach().clone() for k, v in module.state_dict().items() if weighted and k != "step_mode"}
    return Row(name, type(module).__name__, made, tensors)


def window(module: Any) -> dict[str, Any]:
    """Of a pool."""
    stride = module.kernel_size if module.stride is None else module.stride
    return {"kernel": size_list(module.kernel_size), "stride": size_list(stride), "padding": size_list(module.padding)}


def one_value(who: str, what: str, value: Any) -> float:
    """A constant that all channels share."""
    found = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
    if not found.numel() or bool((found != found[0]).any()) or not math.isfinite(float(found[0])):
        raise ConversionError(f"{who}: {what} differs from channel to channel, and a neuron here has one for the layer")
    return float(found[0])


def tau_of(who: str, what: str, decay: float) -> dict[str, Any]:
    """A decay per step as time constants say it: 1 - 1/tau."""
    if decay == 1.0:
        return {"leaky": False}
    if not 0.0 < decay <= 1.0 - 1e-4:
        raise ConversionError(f"{who}: {what} is {decay:g}; possible: 1, or more than 0 and at most 0.9999")
    return {"tau": 1.0 / (1.0 - decay)}
