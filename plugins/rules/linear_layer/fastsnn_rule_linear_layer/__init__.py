"""Rule: linear layers read spikes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Rule, hookimpl
from fastsnn_core.moved import renamed

__version__ = "0.1.0"

PRODUCTS = (operator.matmul, torch.matmul, torch.bmm, torch.einsum, "matmul", "bmm")


@frozen
class LinearRule(Rule):
    """y = V · (W c) + b for spikes (c, V); x [N, …, D] -> y [N, …, out].

    The layer stays what it is: ``F.linear`` of a SpikeTensor multiplies the counts and scales once, so that with whole
    weights counts, trains and events give the same bits.
    """

    name = "linear_layer"
    covers = ("torch.nn.Linear",)

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) is nn.Linear

    def convert(self, module: Any, context: Context) -> Replacement:
        """The layer, reading spikes."""
        return context.project(module, "weights kept")

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """A call that stays a call, and why."""
        if function is F.linear:
            return "multiplies numbers, since its weight is no module's; an nn.Linear in its place would read spikes"
        return "a product of two values" if function in PRODUCTS else None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [LinearRule]


__getattr__ = renamed(__name__, {"Linear": "LinearRule"})
