"""Rules: batch norm is folded away, norms over channels are kept."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.context import Context, Replacement, declared_type
from fastsnn_conversion.norm_folding import CONVS, affine, fold_back, set_weights
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
KEPT = (
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.LocalResponseNorm,
)  # fmt: skip

CALLS = (F.layer_norm, F.rms_norm, F.group_norm, F.instance_norm, F.local_response_norm, F.normalize)
NEEDS = "needs every channel's value; the projection behind it spikes"


def fold_forward(norm: Any, layer: Any) -> bool:
    """layer(norm(x)) into `layer`; False where it does not fit (a padded convolution sees 0, not the norm's shift)."""
    a, b = affine(norm)
    bias = 0 if getattr(layer, "bias", None) is None else layer.bias.detach().double()
    if type(layer) is nn.Linear and layer.in_features % len(a) == 0:
        repeat = layer.in_features // len(a)  # a flattened [C, H, W] has C blocks
        weight, a, b = layer.weight.detach().double(), a.repeat_interleave(repeat), b.repeat_interleave(repeat)
        set_weights(layer, weight * a, bias + weight @ b)
        return True
    if type(layer) not in CONVS or layer.in_channels != len(a) or layer.groups != 1:
        return False
    padded = layer.padding == "same" or (layer.padding != "valid" and any(layer.padding))
    if padded and bool((b != 0).any()):
        return False
    weight, places = layer.weight.detach().double(), [1] * (layer.weight.ndim - 2)
    shift = (weight * b.reshape(1, -1, *places)).flatten(1).sum(1)
    set_weights(layer, weight * a.reshape(1, -1, *places), bias + shift)
    return True


@frozen
class BatchNorm(Rule):
    """BN(x) = a x + b per channel, with the running statistics: W' = a W, b' = a b + β backwards into the layer before;
    W' = W a, b' = b + W β forwards into the layer behind (through a flatten). Exact in evaluation mode.

    Without a neighbour that fits it is kept, as an affine map of numbers.
    """

    name = "batch_norm"
    covers = tuple(f"torch.nn.{cls.__name__}" for cls in BATCH)

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return declared_type(module) in BATCH

    def convert(self, module: Any, context: Context) -> Replacement:
        """Nothing, with its work done by a neighbour; or the norm itself."""
        if module.running_mean is None:
            return context.keep(module, "has no running statistics, so it works on each batch")
        if context.before is not None and fold_back(module, context.before):
            return context.fold("folded into the layer before it")
        if context.after is not None and fold_forward(module, context.after):
            return context.fold("folded into the layer behind it")
        return context.keep(module, "an affine map of numbers: no linear or convolution directly before or behind it")


@frozen
class Norms(Rule):
    """Norms whose statistics are the sample's own stay on numbers; the projection behind them spikes."""

    name = "norms"
    covers = tuple(f"torch.nn.{cls.__name__}" for cls in KEPT)

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in KEPT

    def convert(self, module: Any, context: Context) -> Replacement:
        """The norm itself."""
        return context.keep(module, NEEDS)

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """A call that stays a call, and why."""
        if function is F.batch_norm:
            return "an affine map of numbers, since its weights are no module's; an nn.BatchNorm would be folded"
        return NEEDS if function in CALLS else None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [BatchNorm, Norms]
