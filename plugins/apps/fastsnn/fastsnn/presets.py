"""Presets: names for filled specs. `model_spec` turns ``arch``, ``attn`` and ``neuron`` into a `Decoder` component."""

from __future__ import annotations

import difflib
from typing import Any

from fastsnn.networks import NETWORKS, network_spec
from fastsnn_core import Component, Model, Neuron, create
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import Faults, SpecError, converter
from fastsnn_model_decoder.attention_list import attention_list

ARCHS: dict[str, dict[str, Any]] = {
    "snn-tiny": {"d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 344},
    "snn-small": {"d_model": 256, "n_layers": 6, "n_heads": 8, "d_ff": 688},
    "snn-base": {"d_model": 512, "n_layers": 8, "n_heads": 8, "d_ff": 1376},
    "snn-large": {"d_model": 1024, "n_layers": 16, "n_heads": 16, "n_kv_heads": 4, "d_ff": 2752},
}
"""Sizes by name; vocab_size is the byte tokenizer's unless given."""


def structure(value: Any, kind: type[Component]) -> Any:
    """A component from a name, a table or itself, with the spec's own errors."""
    try:
        return converter().structure(value, kind)
    except Faults as error:
        raise SpecError(error.problems, source="") from None


def model_spec(arch: str = "snn-tiny", attn: Any = "hybrid_alt", neuron: Any = None, **changes: Any) -> Model:
    """The decoder that a preset means; `changes` are the decoder's own parameters, and ``window``.

    ``attention``, the decoder's own name of `attn`, is taken as that. Errors (FastSNNError): no such arch, a parameter
    that it has not, a value out of range.

    The presets of networks over time (`fastsnn.networks`) have parameters of their own.
    """
    if taken := sorted({"kind", "name"} & changes.keys()):
        raise FastSNNError(f"a model has no parameter {taken[0]!r}; what is built is chosen with arch, attn and neuron")
    if arch in NETWORKS:
        return network_spec(arch, neuron, **changes)
    if arch not in ARCHS:
        known = [*ARCHS, *NETWORKS]
        close = difflib.get_close_matches(arch, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise FastSNNError(f"no arch {arch!r}; {hint}there are {', '.join(known)}")
    neuron = "adaptive_threshold" if neuron is None else neuron
    window, attn = changes.pop("window", None), changes.pop("attention", attn)
    if "feedforward" in changes:
        from fastsnn_core import Feedforward

        changes["feedforward"] = structure(changes["feedforward"], Feedforward)
    sizes = ARCHS[arch] | changes
    return create("model", "decoder", attention=attention_list(attn, window), neuron=structure(neuron, Neuron), **sizes)
