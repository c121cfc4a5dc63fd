"""The activation Snake: the module, a component for bundles, and a rule that turns it into spikes."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Model, Rule, hookimpl, param

__version__ = "0.1.0"


class Snake(nn.Module):
    """x + sin²(αx) / α with one learnt α per channel; x ``[…, D]``. Ziyin et al. 2020 (arXiv 2006.08195)."""

    def __init__(self, features: int, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((features,), alpha))
        self.spec = SnakeModel(features=features)  # what a bundle writes down

    def forward(self, x: Tensor) -> Tensor:
        """The activation."""
        return x + torch.sin(self.alpha * x).square() / self.alpha


@frozen
class SnakeModel(Model):
    """x + sin²(αx) / α.  x [B, features] -> [B, features]; α > 0 per channel, learnt."""

    name = "snake"
    features: int = param(ge=1, unit="channels", doc="D, width of the last dimension", draw=(3,))

    def build(self) -> Snake:
        """The module."""
        return Snake(self.features)

    def example(self, batch: int) -> Tensor:
        """Numbers ``[batch, features]``."""
        return torch.linspace(-2, 2, batch * self.features).reshape(batch, self.features)


@frozen
class SnakeRule(Rule):
    """s = spikes(x + sin²(αx) / α): the activation keeps its learnt α, its output becomes signed spikes."""

    name = "snake"
    covers = ("acme_snake.Snake",)

    def examples(self) -> Any:
        """What the conformance kit converts."""
        yield Snake(5, 0.7), torch.linspace(-2, 2, 20).reshape(4, 5)

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return isinstance(module, Snake)

    def convert(self, module: Any, context: Context) -> Replacement:
        """The activation, with a spike site behind it."""
        return context.spike(module, "spikes of x + sin²(αx)/α")


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [SnakeRule]


@hookimpl
def fastsnn_models() -> list[type[Model]]:
    """This plugin's models."""
    return [SnakeModel]
