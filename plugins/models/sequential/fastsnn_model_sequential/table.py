"""The table of operations: what each takes, the shape behind it, and the `nn.Module` it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
from torch import nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_core.errors import FastSNNError
from fastsnn_model_sequential.blocks import ResidualBlock, SpikingAttention
from fastsnn_model_sequential.modules import (
    LeakyReadout,
    ThresholdBatchNorm,
    TimeBegins,
    TimeDifference,
    TimeFixedDropout,
    TimeMean,
)

Shape = tuple[int, ...]
NEEDED = attrs.NOTHING
SPREAD = ("kernel", "stride", "padding", "dilation", "output_padding")


@attrs.frozen
class Op:
    """`takes`: parameter to default; `features`: what comes in, by shape; `window`: dimensions of its window."""

    takes: dict[str, Any]
    build: Callable[[Any], nn.Module]
    shape: Callable[[Any, Shape], Shape] = lambda v, s: s
    features: Callable[[Shape, Any], int | None] = lambda s, v: None
    ranks: tuple[int, ...] = ()
    window: int = 0

    def fill(self, v: Any, shape: Shape | None) -> Any:
        """Spread sizes over the window's dimensions; a stride left out is the kernel (pools)."""
        if getattr(v, "dims", 0) is None:
            pools = hasattr(v, "kernel")
            v.dims = len(shape) - pools if shape else len(v.kernel) if pools else 1
        n = self.window or getattr(v, "dims", 0)
        if "kernel" in self.takes and hasattr(v, "stride") and v.stride is None:
            v.stride = v.kernel
        for name in SPREAD:
            size = getattr(v, name, None)
            if size is not None:
                if len(size) not in (1, n):
                    raise FastSNNError(f"{v.op} has {n} dimensions, but {name} = {list(size)}")
                setattr(v, name, size * n if len(size) == 1 else size)
        return v


def channel_axis_size(shape: Shape, v: Any) -> int:
    """Of ``[C, …]``."""
    return shape[0]


def last_axis_size(shape: Shape, v: Any) -> int:
    """Of ``[…, D]``."""
    return shape[-1]


def window_sizes(v: Any, shape: Shape) -> Shape:
    """Sizes behind a sliding window."""
    dilation = getattr(v, "dilation", (1,) * len(v.kernel))
    rows = zip(shape[1:], v.kernel, v.stride, v.padding, dilation)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in rows)


def widened(v: Any, shape: Shape) -> Shape:
    """Sizes behind a transposed convolution."""
    rows = zip(shape[1:], v.kernel, v.stride, v.padding, v.output_padding, v.dilation)
    return (v.size, *((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in rows))


def in_bits(layer: nn.Module, bits: int | None) -> nn.Module:
    """The layer, or its form with INT8 weights on counts (`fastsnn_integer.quant_conv`)."""
    if bits is None:
        return layer
    from fastsnn_integer.quant_conv import int8_layer

    found: nn.Module = int8_layer(layer)
    return found


def convolution_kind(cls: type[nn.Module], dims: int) -> Op:
    """nn.Conv1d, nn.Conv2d."""
    takes = {"size": NEEDED, "kernel": NEEDED, "stride": (1,), "padding": (0,), "dilation": (1,)}

    def build(v: Any) -> nn.Module:
        float_layer = cls(
            v.features, v.size, v.kernel, v.stride, v.padding, v.dilation, v.groups, v.bias, v.padding_mode
        )
        return in_bits(float_layer, getattr(v, "bits", None))

    takes |= {"bits": None} if dims < 3 else {}
    return Op(
        takes | {"groups": 1, "bias": True, "padding_mode": "zeros", "features": None},
        build,
        lambda v, s: (v.size, *window_sizes(v, s)),
        channel_axis_size,
        (dims + 1,),
        dims,
    )


def transposed(cls: type[nn.Module], dims: int) -> Op:
    """nn.ConvTranspose1d, nn.ConvTranspose2d."""
    takes = {"size": NEEDED, "kernel": NEEDED, "stride": (1,), "padding": (0,), "output_padding": (0,)}

    def build(v: Any) -> nn.Module:
        return cls(v.features, v.size, v.kernel, v.stride, v.padding, v.output_padding, v.groups, v.bias, v.dilation)

    takes |= {"groups": 1, "bias": True, "dilation": (1,), "features": None}
    return Op(takes, build, widened, channel_axis_size, (dims + 1,), dims)


def parameterless(cls: type[nn.Module], **fixed: Any) -> Op:
    """An activation without parameters."""
    return Op({}, lambda v: cls(**fixed))


def sloped(cls: type[nn.Module], default: float) -> Op:
    """An activation with a slope (or alpha) below zero."""
    return Op({"slope": default}, lambda v: cls(v.slope))


def batch_norm(v: Any) -> nn.Module:
    """One class for every rank: statistics per channel, dimension 1."""
    from fastsnn_model_sequential.modules import AnyRankBatchNorm

    return AnyRankBatchNorm(v.features, v.eps, v.momentum, v.affine, v.tracked, v.spread)


def pooled_mean(v: Any, shape: Shape) -> Shape:
    """Sizes behind an adaptive pool."""
    if len(v.shape) != len(shape) - 1:
        raise FastSNNError(
            f"adaptive_avg_pool to {list(v.shape)} needs {len(v.shape) + 1} dimensions, got {list(shape)}"
        )
    return (shape[0], *v.shape)


def unflattened(v: Any, shape: Shape) -> Shape:
    """A sample of one dimension in another shape."""
    if math.prod(v.shape) != math.prod(shape):
        raise FastSNNError(f"unflatten to {list(v.shape)} needs {math.prod(v.shape)} numbers, got {list(shape)}")
    return v.shape


def inside(v: Any, shape: Shape) -> Shape:
    """Behind a network of its own: what it says, or what comes out when it is run."""
    import torch

    if callable(shapes := getattr(v.part, "shapes", None)):
        if v.part.input != shape:
            raise FastSNNError(f"the part takes {list(v.part.input)}, but {list(shape)} comes in")
        return tuple(shapes()[-1])

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return tuple(v.part.build().eval()(torch.zeros(1, *shape)).shape[1:])


def group(shape: Shape, v: Any) -> int:
    """Channels that share a threshold."""
    return math.prod(shape[-v.dims :])


def site(v: Any) -> nn.Module:
    """Spikes."""
    return TimeFoldedSite.of(v.neuron, v.features, v.dims)


def nested_network(v: Any) -> nn.Module:
    """A network of its own, which keeps its spec."""
    from fastsnn_core import build

    return build(v.part)


def residual_block(v: Any) -> nn.Module:
    """A branch and its shortcut."""
    from fastsnn_core import build

    return ResidualBlock(build(v.part), None if v.shortcut is None else build(v.shortcut), v.how)


def joined_shape(v: Any, shape: Shape) -> Shape:
    """Behind a residual: branch and shortcut have one shape."""
    out = inside(v, shape)
    beside = shape if v.shortcut is None else inside(SimpleNamespace(part=v.shortcut), shape)
    if out != beside:
        says = f"the branch of the residual makes {list(out)} out of {list(shape)}, its shortcut {list(beside)}"
        raise FastSNNError(says)
    return out


NORM = {"eps": 1e-5, "affine": True, "features": None}
OPS: dict[str, Op] = {
    "linear": Op(
        {"size": NEEDED, "bias": True, "features": None, "bits": None},
        lambda v: in_bits(nn.Linear(v.features, v.size, v.bias), v.bits),
        lambda v, s: (*s[:-1], v.size),
        last_axis_size,
    ),
    "conv1d": convolution_kind(nn.Conv1d, 1),
    "conv2d": convolution_kind(nn.Conv2d, 2),
    "conv3d": convolution_kind(nn.Conv3d, 3),
    "conv_transpose1d": transposed(nn.ConvTranspose1d, 1),
    "conv_transpose2d": transposed(nn.ConvTranspose2d, 2),
    "conv_transpose3d": transposed(nn.ConvTranspose3d, 3),
    "embedding": Op(
        {"features": NEEDED, "size": NEEDED}, lambda v: nn.Embedding(v.features, v.size), lambda v, s: (*s, v.size)
    ),
    "batch_norm": Op(NORM | {"momentum": 0.1, "tracked": True, "spread": 0.0}, batch_norm, features=channel_axis_size),
    "td_batch_norm": Op(
        {"eps": 1e-5, "momentum": 0.1, "alpha": 1.0, "threshold": 1.0, "features": None},
        lambda v: ThresholdBatchNorm(v.features, v.eps, v.momentum, v.alpha, v.threshold),
        features=channel_axis_size,
    ),
    "layer_norm": Op(
        {"shape": None, "eps": 1e-5, "affine": True, "bias": True, "features": None},
        lambda v: nn.LayerNorm(v.shape or (v.features,), v.eps, v.affine, v.bias and v.affine),
        features=last_axis_size,
    ),
    "rms_norm": Op(
        {"eps": None, "affine": True, "features": None},
        lambda v: nn.RMSNorm(v.features, v.eps, v.affine),
        features=last_axis_size,
    ),
    "group_norm": Op(
        {"groups": NEEDED} | NORM,
        lambda v: nn.GroupNorm(v.groups, v.features, v.eps, v.affine),
        features=channel_axis_size,
    ),
    "relu": parameterless(nn.ReLU),
    "relu6": parameterless(nn.ReLU6),
    "leaky_relu": sloped(nn.LeakyReLU, 0.01),
    "elu": sloped(nn.ELU, 1.0),
    "selu": parameterless(nn.SELU),
    "gelu": parameterless(nn.GELU),
    "gelu_tanh": parameterless(nn.GELU, approximate="tanh"),
    "silu": parameterless(nn.SiLU),
    "mish": parameterless(nn.Mish),
    "celu": sloped(nn.CELU, 1.0),
    "softplus": parameterless(nn.Softplus),
    "softsign": parameterless(nn.Softsign),
    "logsigmoid": parameterless(nn.LogSigmoid),
    "hardswish": parameterless(nn.Hardswish),
    "hardsigmoid": parameterless(nn.Hardsigmoid),
    "tanh": parameterless(nn.Tanh),
    "sigmoid": parameterless(nn.Sigmoid),
    "softmax": parameterless(nn.Softmax, dim=-1),
    "log_softmax": parameterless(nn.LogSoftmax, dim=-1),
    "prelu": Op(
        {"features": None},
        lambda v: nn.PReLU(v.features),
        features=lambda s, v: s[0] if v.features not in (None, 1) else 1,
    ),
    "avg_pool": Op(
        {"kernel": NEEDED, "stride": None, "padding": (0,), "dims": None},
        lambda v: spike_layers.AvgPool(len(v.kernel), v.kernel, v.stride, v.padding),
        lambda v, s: (s[0], *window_sizes(v, s)),
        ranks=(2, 3, 4),
    ),
    "max_pool": Op(
        {"kernel": NEEDED, "stride": None, "padding": (0,), "dilation": (1,), "dims": None},
        lambda v: spike_layers.MaxPool(len(v.kernel), v.kernel, v.stride, v.padding, v.dilation),
        lambda v, s: (s[0], *window_sizes(v, s)),
        ranks=(2, 3, 4),
    ),
    "adaptive_avg_pool": Op(
        {"shape": NEEDED}, lambda v: spike_layers.AdaptiveAvgPool(len(v.shape), v.shape), pooled_mean, ranks=(2, 3, 4)
    ),
    "flatten": Op({}, lambda v: spike_layers.Flatten(), lambda v, s: (math.prod(s),)),
    "unflatten": Op({"shape": NEEDED}, lambda v: spike_layers.Unflatten(v.shape), unflattened, ranks=(1,)),
    "dropout": Op(
        {"p": 0.5, "fixed": False}, lambda v: TimeFixedDropout(v.p) if v.fixed else spike_layers.Dropout(v.p)
    ),
    "channel_dropout": Op({"p": 0.5, "dims": 2}, lambda v: getattr(nn, f"Dropout{v.dims}d")(v.p)),
    "additive_mask": Op({"heads": NEEDED, "keys": False}, lambda v: spike_layers.AdditiveMask(v.heads, v.keys)),
    "identity": parameterless(nn.Identity),
    "spikes": Op({"neuron": NEEDED, "dims": None, "features": None}, site, features=group),
    "mean": Op({}, lambda v: TimeMean()),
    "repeat": Op({"steps": NEEDED}, lambda v: TimeBegins(v.steps)),
    "integrate": Op({"tau": 2.0, "learn": False}, lambda v: LeakyReadout(v.tau, v.learn)),
    "difference": Op({"coder": NEEDED}, lambda v: TimeDifference(v.coder)),
    "encode": Op({"steps": NEEDED, "coder": NEEDED}, lambda v: TimeBegins(v.steps, v.coder)),
    "part": Op({"part": NEEDED}, nested_network, inside),
    "residual": Op({"part": NEEDED, "shortcut": None, "how": "add"}, residual_block, joined_shape),
    "spiking_attention": Op(
        {"heads": NEEDED, "neuron": NEEDED, "scale": 0.25, "norms": True, "features": None},
        lambda v: SpikingAttention(v.features, v.heads, v.neuron, v.scale, v.norms),
        features=channel_axis_size,
        ranks=(2, 3, 4),
    ),
}
