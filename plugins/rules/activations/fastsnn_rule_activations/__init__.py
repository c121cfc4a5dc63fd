"""Rule: activations become spikes of their output, as modules and as function calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softsign, nn.LogSigmoid, nn.Threshold,
)  # fmt: skip
NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Softplus, nn.Hardsigmoid, nn.Sigmoid)
CALLS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU, F.relu6: nn.ReLU6,
    F.silu: nn.SiLU, F.mish: nn.Mish, F.selu: nn.SELU, torch.selu: nn.SELU, F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid, F.softsign: nn.Softsign, F.logsigmoid: nn.LogSigmoid,
    torch.tanh: nn.Tanh, F.tanh: nn.Tanh, "tanh": nn.Tanh,
    torch.sigmoid: nn.Sigmoid, F.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
}  # fmt: skip
SLOPED: dict[Any, tuple[str, float, Callable[[float], nn.Module]]] = {
    F.leaky_relu: ("negative_slope", 0.01, nn.LeakyReLU),
    F.elu: ("alpha", 1.0, nn.ELU),
    F.celu: ("alpha", 1.0, nn.CELU),
}


@frozen
class Activations(Rule):
    """s = spikes(f(x)) for an elementwise f; x [N, …] -> spikes [N, …], value counts · V.

    f itself is exact; the only loss is the rounding of its output to counts. In-place activations are taken out of
    place, because the value they would overwrite may be read elsewhere. An activation whose output no projection reads
    as spikes is kept on numbers.
    """

    name = "activations"
    covers = tuple(f"torch.nn.{cls.__name__}" for cls in MODULES)

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in MODULES

    def convert(self, module: Any, context: Context) -> Replacement:
        """The activation, with a site behind it."""
        if getattr(module, "inplace", False):
            module.inplace = False
        signed = "" if type(module) in NON_NEGATIVE else "; signed spikes"
        return context.spike(module, f"spikes of {type(module).__name__}(x){signed}")

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
        """The module that a function call stands for."""
        if function in CALLS:
            return CALLS[function]()
        if function in SLOPED:
            name, default, make = SLOPED[function]
            return make(float(args[1] if len(args) > 1 else kwargs.get(name, default)))
        if function is F.gelu:
            return nn.GELU(approximate=kwargs.get("approximate", "none"))
        if function is F.softplus and len(args) == 1 and not kwargs:
            return nn.Softplus()
        return None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [Activations]
