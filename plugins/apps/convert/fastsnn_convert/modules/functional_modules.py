"""Modules without weights that `sequential` has no layer for, as the function call that they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from torch import nn

from fastsnn_model_graph import Step
from fastsnn_model_graph.text import FUNCTIONS
from fastsnn_model_sequential.describe import changed_instance

MAX = {nn.MaxPool1d: "max_pool1d", nn.MaxPool2d: "max_pool2d", nn.MaxPool3d: "max_pool3d"}
AVG = {nn.AvgPool1d: "avg_pool1d", nn.AvgPool2d: "avg_pool2d", nn.AvgPool3d: "avg_pool3d"}
ADAPTIVE: dict[Any, str] = {
    **{getattr(nn, f"AdaptiveAvgPool{n}d"): f"adaptive_avg_pool{n}d" for n in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveMaxPool{n}d"): f"adaptive_max_pool{n}d" for n in (1, 2, 3)},
}
PADS: dict[Any, str] = {
    getattr(nn, f"{name}Pad{n}d"): mode
    for name, mode in (
        ("Zero", "constant"), ("Constant", "constant"), ("Reflection", "reflect"), ("Replication", "replicate"),
        ("Circular", "circular"),
    )
    for n in (1, 2, 3)
}  # fmt: skip
WINDOW = ("kernel_size", "stride", "padding")
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
FIELDS: dict[Any, tuple[str, tuple[str, ...]]] = {
    **{kind: (n, (*WINDOW, "dilation", "ceil_mode", "return_indices")) for kind, n in MAX.items()},
    **{kind: (n, (*WINDOW, "ceil_mode", "count_include_pad")) for kind, n in AVG.items()},
    nn.Softmax: ("softmax", ("dim",)), nn.LogSoftmax: ("log_softmax", ("dim",)), nn.Softmin: ("softmin", ("dim",)),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")), nn.Threshold: ("threshold", ("threshold", "value")),
    nn.Softplus: ("softplus", ("beta", "threshold")), nn.GLU: ("glu", ("dim",)), nn.Tanhshrink: ("tanhshrink", ()),
    nn.Hardshrink: ("hardshrink", ("lambd",)), nn.Softshrink: ("softshrink", ("lambd",)),
    nn.PixelShuffle: ("pixel_shuffle", ("upscale_factor",)),
    nn.PixelUnshuffle: ("pixel_unshuffle", ("downscale_factor",)),
    nn.Unfold: ("unfold", ("kernel_size", "dilation", "padding", "stride")),
    nn.LocalResponseNorm: ("local_response_norm", ("size", "alpha", "beta", "k")),
    nn.Upsample: ("interpolate", ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")),
    nn.UpsamplingNearest2d: ("interpolate", ("size", "scale_factor", "mode")),
    nn.UpsamplingBilinear2d: ("interpolate", ("size", "scale_factor", "mode", "align_corners")),
    nn.LPPool1d: ("lp_pool1d", ("norm_type", "kernel_size", "stride", "ceil_mode")),
    nn.LPPool2d: ("lp_pool2d", ("norm_type", "kernel_size", "stride", "ceil_mode")),
    nn.CosineSimilarity: ("cosine_similarity", ("dim", "eps")),
}  # fmt: skip


def call_arguments(module: Any) -> tuple[str, dict[str, Any]] | None:
    """The function that a module calls, and its keyword arguments beside the input."""
    kind = type(module)
    if kind in FIELDS:
        name, fields = FIELDS[kind]
        kwargs = {field: getattr(module, field) for field in fields}
        if getattr(module, "divisor_override", None) is not None:
            kwargs["divisor_override"] = module.divisor_override
        return name, kwargs
    if kind in ADAPTIVE:
        more = {"return_indices": True} if getattr(module, "return_indices", False) else {}
        return ADAPTIVE[kind], {"output_size": module.output_size, **more}
    if kind in PADS:
        mode = PADS[kind]
        return "pad", {"pad": module.padding, "mode": mode, **({"value": module.value} if mode == "constant" else {})}
    if kind in INSTANCE and not module.affine and not module.track_running_stats:
        return "instance_norm", {"eps": module.eps}
    if kind is nn.Flatten:
        return "flatten", {"start_dim": module.start_dim, "end_dim": module.end_dim}
    if kind is nn.Unflatten:
        return "unflatten", {"dim": module.dim, "sizes": tuple(module.unflattened_size)}
    return None


def as_call(step: Step, held: Callable[[str], Any]) -> Step | None:
    """A module step as a call step, or None where the module has no such form."""
    module = held(step.target)
    if changed_instance(module) or (found := call_arguments(module)) is None or step.kwargs:
        return None
    name, kwargs = found
    return attrs.evolve(step, kind="call", target=name, kwargs=kwargs, function=FUNCTIONS[name], method=False)
