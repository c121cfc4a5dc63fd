"""FastSNN: build, convert, train, inspect, export and serve spiking language models.

from fastsnn import FastSNN
model = FastSNN.build(arch="snn-tiny", attn="hybrid_alt", neuron="lif_sint")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsnn_core.lazy import lazy

if TYPE_CHECKING:
    from fastsnn.api import FastSNN as FastSNN
    from fastsnn.api import NeuronCell as NeuronCell
    from fastsnn.builder.config import SNNConfig as SNNConfig
    from fastsnn_core.component import Coder as Coder
    from fastsnn_core.component import Neuron as Neuron
    from fastsnn_core.errors import FastSNNError as FastSNNError
    from fastsnn_core.plugins import create as create
    from fastsnn_core.spike_tensor import SpikeTensor as SpikeTensor

__version__ = "0.1.0"
_EXPORTS = {
    "Coder": "fastsnn_core.component",
    "FastSNN": ".api",
    "FastSNNError": "fastsnn_core.errors",
    "Neuron": "fastsnn_core.component",
    "NeuronCell": "fastsnn.api",
    "SNNConfig": ".builder.config",
    "SpikeTensor": "fastsnn_core.spike_tensor",
    "create": "fastsnn_core.plugins",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
