"""FastSNN core: spiking networks out of plugins. Importing this imports neither torch nor any plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsnn_core import moved
from fastsnn_core.lazy import lazy

if TYPE_CHECKING:
    from fastsnn_core.bundle import BundleError as BundleError
    from fastsnn_core.bundle import build as build
    from fastsnn_core.bundle import load as load
    from fastsnn_core.bundle import save as save
    from fastsnn_core.component import Attention as Attention
    from fastsnn_core.component import Coder as Coder
    from fastsnn_core.component import Component as Component
    from fastsnn_core.component import Exporter as Exporter
    from fastsnn_core.component import Feedforward as Feedforward
    from fastsnn_core.component import Kernel as Kernel
    from fastsnn_core.component import Model as Model
    from fastsnn_core.component import Neuron as Neuron
    from fastsnn_core.component import Objective as Objective
    from fastsnn_core.component import ParamError as ParamError
    from fastsnn_core.component import Rule as Rule
    from fastsnn_core.component import Scope as Scope
    from fastsnn_core.component import Surrogate as Surrogate
    from fastsnn_core.component import Tracker as Tracker
    from fastsnn_core.component import contract as contract
    from fastsnn_core.component import param as param
    from fastsnn_core.component import parts as parts
    from fastsnn_core.component import slot as slot
    from fastsnn_core.component import slots as slots
    from fastsnn_core.heads import Dims as Dims
    from fastsnn_core.heads import Heads as Heads
    from fastsnn_core.hookspecs import hookimpl as hookimpl
    from fastsnn_core.plugins import create as create
    from fastsnn_core.plugins import registry as registry
    from fastsnn_core.site import SpikeSite as SpikeSite
    from fastsnn_core.spec import Spec as Spec
    from fastsnn_core.spec import SpecError as SpecError
    from fastsnn_core.spike_tensor import Sparsity as Sparsity
    from fastsnn_core.spike_tensor import SpikeTensor as SpikeTensor
    from fastsnn_core.training_run import Run as Run
    from fastsnn_core.training_run import Session as Session

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
