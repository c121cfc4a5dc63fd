"""FastSNN: build, convert, train, inspect, export and serve spiking language models.

from fastsnn import FastSNN
model = FastSNN.build(arch="snn-tiny", attn="hybrid_alt", neuron="lif_sint")
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["FastSNN", "SNNConfig", "SpikeTensor"]


def __getattr__(name: str) -> Any:
    if name == "FastSNN":
        from fastsnn.api import FastSNN

        return FastSNN
    if name == "SNNConfig":
        from fastsnn.builder.config import SNNConfig

        return SNNConfig
    if name == "SpikeTensor":
        from fastsnn_core import SpikeTensor

        return SpikeTensor
    raise AttributeError(f"module 'fastsnn' has no attribute {name!r}")
