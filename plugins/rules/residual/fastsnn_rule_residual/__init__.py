"""Rule: calls that join values (sums, products, concatenations) stay, with the reason."""

from __future__ import annotations

import operator
from typing import Any

import torch
from attrs import frozen

from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

ADD = (operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub")
MUL = (operator.mul, operator.imul, torch.mul, "mul")
JOIN = (torch.cat, torch.concat, torch.stack)


@frozen
class Residual(Rule):
    """x + f(x), x · g, [x, y]: joined by value; spikes come in by their values, and the projection behind spikes anew.

    Two trains of one threshold could be added as counts, but a residual stream has no threshold of its own.
    """

    name = "residual"
    covers = ("torch.add", "torch.mul", "torch.cat")

    def matches(self, module: Any) -> bool:
        """It speaks for calls only."""
        return False

    def convert(self, module: Any, context: Context) -> Replacement:
        """Never asked."""
        return context.keep(module)

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """A call that stays a call, and why."""
        if function in ADD:
            return "values are added; the projection behind it spikes"
        if function in MUL:
            return "values are multiplied (a gate); the projection behind it spikes"
        if function in JOIN:
            return "values are put side by side; the projection behind it spikes"
        return None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [Residual]
