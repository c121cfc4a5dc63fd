"""Every hook of FastSNN. A plugin implements the ones it offers; order never matters.

Each hook takes no argument and returns component classes of one kind. `fastsnn_core.plugins` calls each plugin's
implementation alone, so that one failing plugin never costs another. API major: 1 (the entry-point group ``fastsnn1``).
"""

# mypy: disable-error-code="empty-body"
from __future__ import annotations

from collections.abc import Iterable

import pluggy

from fastsnn_core import component as c

PROJECT = "fastsnn"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fastsnn_surrogates() -> Iterable[type[c.Surrogate]]:
    """Surrogate gradients: ``derivative(u, first, last)`` stands in for the derivative of the spike count."""


@hookspec
def fastsnn_neurons() -> Iterable[type[c.Neuron]]:
    """Neurons: ``build(features) -> module``; ``(x [B,T,D], state, reset [B,T]) -> (SpikeTensor, state)``."""


@hookspec
def fastsnn_coders() -> Iterable[type[c.Coder]]:
    """Coders: ``encode(x, steps) -> SpikeTensor`` (train ``[S, …]``), ``decode(spikes) -> Tensor``."""


@hookspec
def fastsnn_attentions() -> Iterable[type[c.Attention]]:
    """Token mixers: ``build(dims) -> mixer``; ``(heads, state, reset) -> (o [B,T,H,V], state)``."""


@hookspec
def fastsnn_feedforwards() -> Iterable[type[c.Feedforward]]:
    """Channel mixers: ``build(d_model, d_ff, site) -> module``; ``(x [B,T,D], state, reset) -> (y, state)``."""


@hookspec
def fastsnn_models() -> Iterable[type[c.Model]]:
    """Whole networks: ``build() -> module``; a language model maps ``tokens [B,T]`` to logits ``[B,T,V]``."""


@hookspec
def fastsnn_rules() -> Iterable[type[c.Rule]]:
    """Conversion rules: ``matches(module) -> bool``; ``convert(module, context) -> Replacement``; explicit priority."""


@hookspec
def fastsnn_exporters() -> Iterable[type[c.Exporter]]:
    """Exporters: ``unsupported(model) -> reasons``; ``export(model, path) -> path``."""


@hookspec
def fastsnn_scopes() -> Iterable[type[c.Scope]]:
    """Pictures: ``measure(subject) -> data``; ``draw(data, figure)`` from that data alone."""


@hookspec
def fastsnn_kernels() -> Iterable[type[c.Kernel]]:
    """Fast twins of `fastsnn_core.ops`: ``operators() -> {operator: callable}``; ``why_not() -> reason | None``."""


@hookspec
def fastsnn_trackers() -> Iterable[type[c.Tracker]]:
    """Callbacks of training: ``start(run) -> session``, whose log, saved and end are called as the run goes on."""


@hookspec
def fastsnn_objectives() -> Iterable[type[c.Objective]]:
    """Losses on labelled samples: ``loss(outputs [B,T,C], targets) -> [B]``; ``read(outputs) -> scores [B,C]``."""


def hook_of(kind: str) -> str:
    """The hook that offers a kind."""
    return f"fastsnn_{kind}s"


HOOKS: dict[str, type[c.Component]] = {hook_of(kind): cls for kind, cls in c.KINDS.items()}
