"""FastSNN core: spiking networks out of plugins. Importing this imports neither torch nor any plugin."""

from __future__ import annotations

from fastsnn_core import moved
from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "Attention": ".component",
    "Coder": ".component",
    "Component": ".component",
    "Exporter": ".component",
    "Feedforward": ".component",
    "Kernel": ".component",
    "Model": ".component",
    "Neuron": ".component",
    "ParamError": ".component",
    "Rule": ".component",
    "Scope": ".component",
    "Surrogate": ".component",
    "Tracker": ".component",
    "contract": ".component",
    "param": ".component",
    "parts": ".component",
    "slot": ".component",
    "slots": ".component",
    "hookimpl": ".hookspecs",
    "create": ".plugins",
    "registry": ".plugins",
    "Spec": ".spec",
    "SpecError": ".spec",
    "Dims": ".heads",
    "Heads": ".heads",
    "SpikeSite": ".site",
    "SpikeTensor": ".spike_tensor",
    "Sparsity": ".spike_tensor",
    "Run": ".training_run",
    "Session": ".training_run",
    "BundleError": ".bundle",
    "build": ".bundle",
    "load": ".bundle",
    "save": ".bundle",
}
moved.install()
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
