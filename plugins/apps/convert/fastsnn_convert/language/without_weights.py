"""Models without weights: made on the meta device, given memory later; neither draws random numbers.

Random numbers and ``empty_like`` of the meta device import torch's compiler and sympy, which takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastsnn_core import build

RANDOM = ("normal_", "uniform_", "trunc_normal_", "random_")


class Uninitialised(TorchFunctionMode):
    """Leave parameters as they are made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Initialisers give their tensor back; everything else runs."""
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def without_weights(spec: Any) -> Any:
    """The model of `spec` on the meta device; torch's random state stays."""
    with torch.device("meta"), Uninitialised():
        return build(spec)


def with_memory(model: nn.Module, dtype: torch.dtype) -> Any:
    """`model` on the CPU, floating-point tensors in `dtype`, with whatever numbers its memory has: to be filled."""
    return model._apply(lambda t: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="cpu"))
