"""Rule: convolutions read spikes."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from torch import nn

from fastsnn_core import Rule, hookimpl
from fastsnn_core.conversion import Context, Replacement

__version__ = "0.1.0"

MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@frozen
class Conv(Rule):
    """y = V · (W ∗ c) + b for spikes (c, V); x [N, C, …] -> y [N, out, …].

    Strides, padding with zeros, dilation and groups as they are. A convolution that pads with anything else (reflect,
    circular) pads values, so it is kept on numbers.
    """

    name = "conv"
    covers = tuple(f"torch.nn.{cls.__name__}" for cls in MODULES)

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in MODULES

    def convert(self, module: Any, context: Context) -> Replacement:
        """The layer, reading spikes."""
        if module.padding_mode != "zeros":
            return context.keep(module, f"pads with {module.padding_mode!r}; only zeros are silent")
        return context.project(module, "weights kept")


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [Conv]
