"""Convolutions with INT8 weights on integer counts: `QuantLinear` for images and signals.

    y[o, p] = (float(Σ_{i, k} c[i, p + k] · w[o, i, k]) · s_o) · V + b_o        s_o = ⌈max |W[o]| / 127⌉

Codes and scales as `fastsnn_integer.quantization` makes them, one scale per output channel; one threshold V per sample.
Sums are exact, so counts, events and any batch give the same bits (`fastsnn_events.count_conv`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_events.count_conv import COUNT_CONV, ConvWindow, event_major
from fastsnn_integer.quantization import Int8Weights, QuantLinear, encode_int8, quantize_per_token


def no_int8_form(conv: nn.Module) -> str:
    """Why a convolution has no INT8 form; "" where it has one."""
    if type(conv) not in (nn.Conv1d, nn.Conv2d):
        return f"a {type(conv).__name__} has no INT8 form; nn.Linear, nn.Conv1d and nn.Conv2d have one"
    if isinstance(conv.padding, str):
        return f'padding = "{conv.padding}" has no INT8 form: give it as numbers'
    if conv.padding_mode != "zeros":
        return f'padding_mode = "{conv.padding_mode}" has no INT8 form; "zeros" has one'
    return ""


class QuantConv(Int8Weights):
    """A convolution of counts with INT8 weights: ``SpikeTensor (or numbers) [N, C, …] -> numbers [N, O, …]``.

    Numbers become counts of eight bits, one threshold per sample. `path`: the kernel that took the last sums.
    Errors (FastSNNError): a threshold per channel, which cannot leave the sum; weights that are not finite.
    """

    reads_spikes = True

    def __init__(self, conv: Any) -> None:
        super().__init__()
        if why := no_int8_form(conv):
            raise FastSNNError(why)
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.dilation = conv.dilation
        self.dims = len(conv.kernel_size)
        codes, scale = encode_int8(conv.weight.flatten(1))
        shape = (len(codes), conv.weight.shape[1], *(1,) * (2 - self.dims), *conv.kernel_size)
        self.register_buffer("weight", event_major(codes.reshape(shape)))
        self.register_buffer("scale", scale)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().float().clone())
        flat = (1,) * (2 - self.dims)
        self.window = ConvWindow(
            (*flat, *self.stride), (*(0,) * len(flat), *self.padding), (*flat, *self.dilation), self.groups
        )
        self.path = ""

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, int8"
        )

    def forward(self, x: SpikeTensor | Tensor) -> Tensor:
        """The convolution; exact up to one rounding per scale."""
        if not isinstance(x, SpikeTensor):
            found, threshold = quantize_per_token(x.detach().flatten(1))
            x = SpikeTensor(found.reshape(x.shape), threshold.reshape(-1, *(1,) * (x.ndim - 1)))
        counts, v = x.counts.detach(), x.scale.detach()
        if v.numel() != 1 and v.numel() != len(counts):
            raise FastSNNError(
                f"integer convolutions need one threshold per sample, this input has {tuple(v.shape)} of them: "
                "a threshold per channel cannot leave the sum"
            )
        image = counts[:, :, None] if self.dims == 1 else counts
        y = COUNT_CONV(counts.device.type, image, self.weight, self.scale[:, 0], v.reshape(-1).float(), self.window)
        self.path = COUNT_CONV.path
        y = y if self.bias is None else y.add_(self.bias[:, None, None].detach())
        return y[:, :, 0] if self.dims == 1 else y


def int8_layer(layer: nn.Module) -> Any:
    """`layer` (linear or a convolution) with INT8 weights."""
    return QuantLinear(layer) if isinstance(layer, nn.Linear) else QuantConv(layer)
