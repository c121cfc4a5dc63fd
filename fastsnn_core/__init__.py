"""FastSNN core: spiking networks out of plugins. Importing this imports neither torch nor any plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsnn_core import moved
from fastsnn_core.lazy import lazy

if TYPE_CHECKING:
    # isort: off
    from fastsnn_core.bundle import BundleError as BundleError, build as build, load as load, save as save
    from fastsnn_core.component import Attention as Attention, Coder as Coder, Component as Component
    from fastsnn_core.component import Exporter as Exporter, Feedforward as Feedforward, Kernel as Kernel
    from fastsnn_core.component import Model as Model, Neuron as Neuron, Objective as Objective
    from fastsnn_core.component import ParamError as ParamError, Rule as Rule, Scope as Scope, Surrogate as Surrogate
    from fastsnn_core.component import Tracker as Tracker, contract as contract, param as param, parts as parts
    from fastsnn_core.component import slot as slot, slots as slots
    from fastsnn_core.heads import Dims as Dims, Heads as Heads
    from fastsnn_core.hookspecs import hookimpl as hookimpl
    from fastsnn_core.plugins import create as create, registry as registry
    from fastsnn_core.site import SpikeSite as SpikeSite
    from fastsnn_core.spec import Spec as Spec, SpecError as SpecError
    from fastsnn_core.spike_tensor import Sparsity as Sparsity, SpikeTensor as SpikeTensor
    from fastsnn_core.training_run import Run as Run, Session as Session
    # isort: on

__version__ = "0.1.0"

_MODULES = {
    ".component": "Attention Coder Component Exporter Feedforward Kernel Model Neuron Objective ParamError Rule Scope "
    "Surrogate Tracker contract param parts slot slots",
    ".hookspecs": "hookimpl",
    ".plugins": "create registry",
    ".spec": "Spec SpecError",
    ".heads": "Dims Heads",
    ".site": "SpikeSite",
    ".spike_tensor": "SpikeTensor Sparsity",
    ".training_run": "Run Session",
    ".bundle": "BundleError build load save",
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names.split()}
moved.install()
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
