"""Rule: convolutions read spikes."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

CALLS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


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

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """A call that stays a call, and why."""
        if function in CALLS:
            return "multiplies numbers, since its weight is no module's; an nn.Conv in its place would read spikes"
        return None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [Conv]
