"""FastSNN: build, convert, train, inspect, export and serve spiking language models.

from fastsnn import FastSNN
model = FastSNN.build(arch="snn-tiny", attn="hybrid_alt", neuron="lif_sint")
"""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"
__all__ = ["FastSNN", "SNNConfig", "SpikeTensor"]


__getattr__ = lazy(
    __name__,
    {"FastSNN": ".api", "SNNConfig": ".builder.config", "SpikeTensor": "fastsnn_core.spike_tensor"},
)
