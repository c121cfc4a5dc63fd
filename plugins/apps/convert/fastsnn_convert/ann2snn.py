"""The one-line conversion: activations to sINT spikes, linear layers for ``[B, D]`` and ``[B, T, D]``."""

from __future__ import annotations

from torch import Tensor, nn

from fastsnn_convert.modules import convert_module


class TinyANN(nn.Module):
    """A small perceptron to try conversion on: linear, ReLU, linear, GELU, linear; x [..., in] -> [..., out]."""

    def __init__(self, in_dim: int = 128, hidden: int = 256, out_dim: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        return self.layers(x)


def convert_ann_to_snn(ann: nn.Module, d_model_fallback: int = 128, *, example: Tensor | None = None) -> nn.Module:
    """`ann` as a spiking network: ReLU, GELU, SiLU and their kin become adaptive-threshold sINT neurons (k = 3).

    The network takes ``[B, …]`` and ``[B, T, …]``, can be trained further, and carries what was done to each module as
    ``.report`` (a `fastsnn_convert.Report`; modules that no rule covers are kept intact and listed there).
    `d_model_fallback` is the width of a neuron whose features neither the modules nor an `example` input tell.
    `fastsnn_convert.convert` is the same with every option, and spikes at every projection's input.
    """
    return convert_module(ann, example=example, coverage="activations", d_model_fallback=d_model_fallback).model
