"""From an `nn.Module` back to the `Layer` that builds it, where there is one."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_core import Model
from fastsnn_integer.quant_conv import QuantConv
from fastsnn_integer.quantization import QuantLinear
from fastsnn_model_sequential.blocks import ResidualBlock, SpikingAttention
from fastsnn_model_sequential.layer import Layer
from fastsnn_model_sequential.modules import (
    AnyRankBatchNorm,
    LeakyReadout,
    ThresholdBatchNorm,
    TimeBegins,
    TimeDifference,
    TimeFixedDropout,
    TimeMean,
)

PLAIN: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SELU: "selu", nn.SiLU: "silu", nn.Mish: "mish", nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Identity: "identity",
    nn.Softsign: "softsign", nn.LogSigmoid: "logsigmoid",
    spike_layers.Flatten: "flatten", TimeMean: "mean",
}  # fmt: skip
CONVS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d", nn.ConvTranspose3d: "conv_transpose3d",
}  # fmt: skip


def describe(module: Any) -> Layer | None:
    """The layer whose module is just like `module` (its weights apart), or None."""
    kind = type(module)
    if changed_instance(module):
        return None
    if isinstance(getattr(module, "spec", None), Model):
        return Layer(op="part", part=module.spec)
    if kind is TimeFoldedSite:
        if module.component is None:
            return None
        return Layer(op="spikes", neuron=module.component, dims=module.channels, features=module.features)
    if kind is TimeBegins:
        more = {} if module.coder is None else {"coder": module.coder}
        return Layer(op="encode" if more else "repeat", steps=module.steps, **more)
    if kind is LeakyReadout:
        return Layer(op="integrate", tau=float(module.tau), learn=module.learn)
    if kind is ResidualBlock:
        specs = [getattr(m, "spec", None) for m in (module.part, module.shortcut)]
        return Layer(op="residual", part=specs[0], shortcut=specs[1], how=module.how)
    if kind is SpikingAttention:
        return Layer(
            op="spiking_attention", features=module.features, heads=module.heads, neuron=module.component,
            scale=module.scale, norms=module.normed,
        )  # fmt: skip
    if kind is TimeDifference:
        return Layer(op="difference", coder=module.coder)
    if kind in PLAIN:
        return Layer(op=PLAIN[kind])
    if kind in CONVS:
        return convolution(module, CONVS[kind])
    if kind is QuantConv:
        return Layer(
            op=f"conv{module.dims}d", features=module.in_channels, size=module.out_channels, kernel=module.kernel_size,
            stride=module.stride, padding=module.padding, dilation=module.dilation, groups=module.groups,
            bias=module.bias is not None, bits=8,
        )  # fmt: skip
    if kind is QuantLinear and not module.group:
        width, bias = module.out_features, module.bias is not None
        return Layer(op="linear", features=module.in_features, size=width, bias=bias, bits=8)
    found: Layer | None = None
    if kind is nn.Linear:
        found = Layer(op="linear", features=module.in_features, size=module.out_features, bias=module.bias is not None)
    elif kind is nn.Embedding and module.max_norm is None:
        found = Layer(op="embedding", features=module.num_embeddings, size=module.embedding_dim)
    elif kind in (nn.LeakyReLU,):
        found = Layer(op="leaky_relu", slope=float(module.negative_slope))
    elif kind in (nn.ELU, nn.CELU):
        found = Layer(op="elu" if kind is nn.ELU else "celu", slope=float(module.alpha))
    elif kind is nn.GELU:
        found = Layer(op="gelu_tanh" if module.approximate == "tanh" else "gelu")
    elif kind is nn.Softplus and (module.beta, module.threshold) == (1, 20):
        found = Layer(op="softplus")
    elif kind in (nn.Softmax, nn.LogSoftmax) and module.dim == -1:
        found = Layer(op="softmax" if kind is nn.Softmax else "log_softmax")
    elif kind is nn.PReLU:
        found = Layer(op="prelu", features=module.num_parameters)
    elif kind is TimeFixedDropout:
        found = Layer(op="dropout", p=float(module.p), fixed=True) if module.p < 1 else None
    elif kind in (nn.Dropout, spike_layers.Dropout):
        found = Layer(op="dropout", p=float(module.p)) if module.p < 1 else None
    elif kind in (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        dims = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d).index(kind) + 1
        found = Layer(op="channel_dropout", p=float(module.p), dims=dims) if module.p < 1 else None
    elif kind is spike_layers.AdditiveMask:
        found = Layer(op="additive_mask", heads=module.heads, keys=module.keys)
    elif kind is spike_layers.Unflatten:
        found = Layer(op="unflatten", shape=module.shape)
    return found or norm_layer(module) or pool_layer(module)


def changed_instance(module: nn.Module) -> bool:
    """Does this very module do more than its class says: forward hooks, or a forward of its own?"""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def convolution(module: Any, op: str) -> Layer | None:
    """Padded evenly."""
    padding = even_padding(module)
    if padding is None:
        return None
    extra: dict[str, Any] = {"output_padding": module.output_padding} if op.startswith("conv_t") else {}
    if module.padding_mode != "zeros":
        extra["padding_mode"] = module.padding_mode
    return Layer(
        op=op, features=module.in_channels, size=module.out_channels, kernel=module.kernel_size, stride=module.stride,
        padding=padding, dilation=module.dilation, groups=module.groups, bias=module.bias is not None, **extra,
    )  # fmt: skip


def even_padding(module: Any) -> tuple[int, ...] | None:
    """Padding as numbers; "same" with an even window pads one side more, which no number says."""
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        whole = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation)]
        return None if any(n % 2 for n in whole) else tuple(n // 2 for n in whole)
    return module.padding


def norm_layer(module: Any) -> Layer | None:
    """Norms with the statistics of torch's defaults."""
    kind = type(module)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, AnyRankBatchNorm):
        if module.momentum is None:
            return None
        more: dict[str, Any] = {} if module.momentum == 0.1 else {"momentum": float(module.momentum)}
        more |= {} if module.running_mean is not None else {"tracked": False}
        more |= {"spread": module.spread} if getattr(module, "spread", 0.0) else {}
        return Layer(op="batch_norm", features=module.num_features, eps=module.eps, affine=module.affine, **more)
    if kind is ThresholdBatchNorm:
        return Layer(
            op="td_batch_norm", features=module.num_features, eps=module.eps, alpha=module.alpha,
            threshold=module.threshold, momentum=module.momentum,
        )  # fmt: skip
    if kind is nn.LayerNorm:
        shape, affine, bias = tuple(module.normalized_shape), module.elementwise_affine, module.bias is not None
        return Layer(op="layer_norm", features=shape[-1], shape=shape, eps=module.eps, affine=affine, bias=bias)
    if kind is nn.RMSNorm and len(module.normalized_shape) == 1:
        width = module.normalized_shape[0]
        return Layer(op="rms_norm", features=width, eps=module.eps, affine=module.elementwise_affine)
    if kind is nn.GroupNorm:
        width, groups = module.num_channels, module.num_groups
        return Layer(op="group_norm", features=width, groups=groups, eps=module.eps, affine=module.affine)
    return None


def pool_layer(module: Any) -> Layer | None:
    """The pools of `fastsnn_conversion.spike_layers`."""

    def sizes(value: Any) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * module.dims

    kind = type(module)
    if kind is spike_layers.AdaptiveAvgPool:
        return Layer(op="adaptive_avg_pool", shape=module.size)
    if kind not in (spike_layers.MaxPool, spike_layers.AvgPool):
        return None
    more: dict[str, Any] = {"dilation": sizes(module.dilation)} if kind is spike_layers.MaxPool else {}
    return Layer(
        op="max_pool" if kind is spike_layers.MaxPool else "avg_pool", kernel=sizes(module.kernel),
        stride=sizes(module.stride), padding=sizes(module.padding), dims=module.dims, **more,
    )  # fmt: skip
