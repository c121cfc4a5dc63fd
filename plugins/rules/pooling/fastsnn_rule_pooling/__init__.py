"""Rules: pooling on counts; flattening and dropout that hand spikes on."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion import spike_layers
from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

MAX: dict[type, int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
AVG: dict[type, int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
OWN = (spike_layers.MaxPool, spike_layers.AvgPool, spike_layers.AdaptiveAvgPool)
ADAPTIVE: dict[type, int] = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
MAX_ARGS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVG_ARGS = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
MAX_CALLS: dict[Any, Any] = {
    F.max_pool1d: nn.MaxPool1d, F.max_pool2d: nn.MaxPool2d, F.max_pool3d: nn.MaxPool3d,
    torch.max_pool1d: nn.MaxPool1d, torch.max_pool2d: nn.MaxPool2d, torch.max_pool3d: nn.MaxPool3d,
}  # fmt: skip
AVG_CALLS: dict[Any, Any] = {F.avg_pool1d: nn.AvgPool1d, F.avg_pool2d: nn.AvgPool2d, F.avg_pool3d: nn.AvgPool3d}
ADAPTIVE_CALLS: dict[Any, Any] = {
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
}


def per_dimension(value: Any, dims: int) -> tuple[int, ...]:
    """One number per dimension."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


@frozen
class Pooling(Rule):
    """avg: Σ_window c with scale V / window;  max: max_window c with scale V.  x [N, C, …] -> y [N, C, …].

    Both are exact on counts, since a window shares one threshold V > 0. Not taken onto counts, and kept: windows cut
    off at the border (ceil_mode, padding that does not count), adaptive windows of different sizes, maxima that also
    return their places, adaptive maxima.
    """

    name = "pooling"
    covers = tuple(f"torch.nn.{cls.__name__}" for cls in (*MAX, *AVG, *ADAPTIVE))

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in {**MAX, **AVG, **ADAPTIVE} or type(module) in OWN

    def convert(self, module: Any, context: Context) -> Replacement:
        """The same pool, on counts where they come."""
        if type(module) in OWN:
            return context.passes(module, "on counts; exact")
        if type(module) in ADAPTIVE:
            return self.adaptive(module, context, ADAPTIVE[type(module)])
        if module.ceil_mode:
            return context.keep(module, "ceil_mode cuts windows off at the border, so they are not of one size")
        dims = {**MAX, **AVG}[type(module)]
        kernel, padding = per_dimension(module.kernel_size, dims), per_dimension(module.padding, dims)
        stride = per_dimension(module.stride if module.stride is not None else module.kernel_size, dims)
        if type(module) in MAX:
            if module.return_indices:
                return context.keep(module, "returns the places of the maxima as well")
            pool: nn.Module = spike_layers.MaxPool(dims, kernel, stride, padding, per_dimension(module.dilation, dims))
            return context.passes(pool, "maxima of counts; exact, since a window shares one threshold")
        if getattr(module, "divisor_override", None) or (any(padding) and not module.count_include_pad):
            return context.keep(module, "windows are divided by different numbers")
        return context.passes(spike_layers.AvgPool(dims, kernel, stride, padding), "sums of counts; exact")

    def adaptive(self, module: Any, context: Context, dims: int) -> Replacement:
        """Adaptive averages, where the windows are of one size."""
        x = context.inputs[0] if context.inputs else None
        if x is None:
            return context.keep(module, "the size of its input is not known; give an example")
        have = tuple(x.shape[-dims:])
        wanted = tuple(n if m is None else m for n, m in zip(have, per_dimension(module.output_size, dims)))
        if any(n % m for n, m in zip(have, wanted)):
            return context.keep(module, f"windows over {have} to {wanted} are of different sizes")
        return context.passes(spike_layers.AdaptiveAvgPool(dims, wanted), "sums of counts; exact")

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
        """The module that a function call stands for."""
        if function in MAX_CALLS:
            given = dict(zip(MAX_ARGS, args)) | kwargs
        elif function in AVG_CALLS:
            given = dict(zip(AVG_ARGS, args)) | kwargs
        elif function in ADAPTIVE_CALLS:
            given = dict(zip(("input", "output_size"), args)) | kwargs
        else:
            return None
        given.pop("input")
        return {**MAX_CALLS, **AVG_CALLS, **ADAPTIVE_CALLS}[function](**given)


CHANNEL_DROPOUT: dict[type[nn.Module], Any] = {
    nn.Dropout1d: F.dropout1d, nn.Dropout2d: F.dropout2d, nn.Dropout3d: F.dropout3d,
}  # fmt: skip
KINDS = (
    *CHANNEL_DROPOUT, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, spike_layers.Flatten, spike_layers.Unflatten,
    spike_layers.Dropout,
)  # fmt: skip


@frozen
class Shapes(Rule):
    """flatten, unflatten, dropout, identity: the same spikes in another shape, or fewer of them while training."""

    name = "shapes"
    covers = (
        "torch.nn.Flatten", "torch.nn.Unflatten", "torch.nn.Identity", "torch.nn.Dropout",
        *(f"torch.nn.{cls.__name__}" for cls in CHANNEL_DROPOUT),
    )  # fmt: skip

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in KINDS

    def convert(self, module: Any, context: Context) -> Replacement:
        """Its twin for spikes."""
        if type(module) in CHANNEL_DROPOUT:
            return context.keep(module, "drops whole channels, in training only")
        if type(module) is nn.Dropout:
            return context.passes(spike_layers.Dropout(module.p), "drops counts in training only")
        if type(module) is nn.Unflatten:
            sizes_ = tuple(int(n) for n in module.unflattened_size)
            if module.dim != 1 or -1 in sizes_:
                return context.keep(module, f"unflattens dimension {module.dim} to {sizes_}")
            return context.passes(spike_layers.Unflatten(sizes_), "the same spikes in more dimensions")
        if type(module) is not nn.Flatten:
            return context.passes(module)
        if module.start_dim != 1 or module.end_dim != -1:
            return context.keep(module, f"flattens only dimensions {module.start_dim} to {module.end_dim}")
        return context.passes(spike_layers.Flatten(), "the same spikes in one dimension")

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
        """The module that a function call stands for."""
        if function in (torch.flatten, "flatten"):
            given = dict(zip(("input", "start_dim", "end_dim"), args)) | kwargs
            whole = given.get("start_dim", 0) == 1 and given.get("end_dim", -1) == -1
            return nn.Flatten() if whole else None
        if function is F.dropout:
            given = dict(zip(("input", "p", "training", "inplace"), args)) | kwargs
            return nn.Dropout(given.get("p", 0.5))
        for module, call in CHANNEL_DROPOUT.items():
            if function is call:
                given = dict(zip(("input", "p", "training", "inplace"), args)) | kwargs
                return module(given.get("p", 0.5))
        return None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [Pooling, Shapes]
