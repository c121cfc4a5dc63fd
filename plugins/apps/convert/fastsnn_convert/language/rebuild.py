"""The same weights under another spec: sites, neurons, biases and attentions come and go, nothing else changes.

A model that gets its weights from elsewhere is made on the meta device and given memory later; neither draws random
numbers. Random numbers and ``empty_like`` of the meta device import torch's compiler and sympy, which takes seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.neurons import evolved
from fastsnn_core import SpikeSite, build
from fastsnn_core.component import fields
from fastsnn_model_decoder import Decoder

WITHIN = {
    "attention.inner": "attn_in",
    "attention.q_site": "q",
    "attention.k_site": "k",
    "attention.v_site": "v",
    "attention.outer": "attn_out",
    "feedforward.inner": "ffn_in",
    "feedforward.hidden": "ffn_hidden",
}
BIASED = {"attn_in": "qkv_bias", "attn_out": "out_bias", "v": "out_bias", "ffn_in": "bias", "ffn_hidden": "bias"}
RANDOM = ("normal_", "uniform_", "trunc_normal_", "random_")


class Uninitialised(TorchFunctionMode):
    """Leave parameters as they are made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Initialisers give their tensor back; everything else runs."""
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def without_weights(spec: Any) -> Any:
    """The model of `spec` on the meta device; torch's random state stays."""
    with torch.device("meta"), Uninitialised():
        return build(spec)


def with_memory(model: nn.Module, dtype: torch.dtype) -> Any:
    """`model` on the CPU, floating-point tensors in `dtype`, with whatever numbers its memory has: to be filled."""
    return model._apply(lambda t: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="cpu"))


def site_table(model: nn.Module) -> dict[str, tuple[str, SpikeSite]]:
    """``{module name: (site name of the spec, site)}`` of a decoder, spiking or not, in the forward pass's order."""
    found: dict[str, tuple[str, SpikeSite]] = {"embed_site": ("embed", model.embed_site)}  # type: ignore[dict-item]
    for i, layer in enumerate(model.layers):  # type: ignore[arg-type]
        for path, name in WITHIN.items():
            found[f"layers.{i}.{path}"] = (name, layer.get_submodule(path))
    found["head_site"] = ("head", model.head_site)  # type: ignore[assignment]
    return found


def with_biases(spec: Decoder, centred: tuple[str, ...]) -> Decoder:
    """`spec` with these sites centred, and the biases that make up for it."""
    wanted = {BIASED[name] for name in centred if name in BIASED}
    if odd := sorted(set(centred) - set(BIASED) - {"k"}):
        raise ConversionError(f"nothing makes up for a centre at {', '.join(odd)}; possible: k, {', '.join(BIASED)}")
    if "bias" in wanted:
        if "bias" not in {f.name for f in fields(type(spec.feedforward))}:
            kind = spec.feedforward.name
            raise ConversionError(f"feedforward {kind!r} has no biases, so its sites cannot be centred")
        spec = attrs.evolve(spec, feedforward=evolved(spec.feedforward, bias=True))
    flags: dict[str, Any] = {name: True for name in wanted if name != "bias"}
    return attrs.evolve(spec, centred=tuple(centred), **flags)


def rebuild(model: nn.Module, spec: Decoder) -> nn.Module:
    """A new model of `spec` that shares every tensor `model` has; what is new starts as in a fresh model.

    New biases and centres are zero. Weights of the same name but another shape are an error that names them.
    """
    new = without_weights(spec)
    have = dict(model.state_dict())
    wanted = new.state_dict()
    kept = {name: t for name, t in have.items() if name in wanted and not neuron_part(name)}
    for name, t in kept.items():
        if t.shape != wanted[name].shape:
            shapes = f"{list(t.shape)} here, {list(wanted[name].shape)} there"
            raise ConversionError(f"{name} does not fit the new spec: {shapes}")
    new.load_state_dict(kept, strict=False, assign=True)
    for name, site in site_table(new).values():
        neuron = spec.neuron_at(name)
        if neuron is not None:
            site.neuron = neuron.build(site.features)
        if site.centre is not None and site.centre.is_meta:
            site.centre = nn.Parameter(torch.zeros(site.features, dtype=new.embed.weight.dtype))
    dtype = new.embed.weight.dtype
    for i, layer in enumerate(new.layers):
        mixer = layer.attention.mixer
        if any(t.is_meta for t in (*mixer.parameters(), *mixer.buffers())):
            layer.attention.mixer = spec.attention[i % len(spec.attention)].build(spec.dims).to(dtype)
    for name, parameter in list(new.named_parameters()):
        if parameter.is_meta:
            if not name.endswith(".bias"):
                raise ConversionError(f"{name} of the new spec has no weights to take; {len(have)} tensors are there")
            owner, _, leaf = name.rpartition(".")
            setattr(new.get_submodule(owner), leaf, nn.Parameter(torch.zeros(parameter.shape, dtype=dtype)))
    new.frequencies = spec.rope.frequencies(spec.dims.head_dim)
    for (_, old), (_, site) in zip(site_table(model).values(), site_table(new).values()):
        carry_constants(old, site)
    for name in ("meta", "sections", "tokenizer", "tokenizer_json"):
        if hasattr(model, name):
            setattr(new, name, getattr(model, name))
    return new.eval()


def neuron_part(name: str) -> bool:
    """Is this tensor a constant of a site's neuron?"""
    return ".neuron." in f".{name}"


def carry_constants(old: SpikeSite, new: SpikeSite) -> None:
    """Neurons of one class keep what was calibrated (k, steps, clip …)."""
    if old.neuron is not None and type(old.neuron) is type(new.neuron):
        have, want = old.neuron.state_dict(), new.neuron.state_dict()
        if all(n in have and have[n].shape == t.shape for n, t in want.items()):
            new.neuron.load_state_dict({n: have[n] for n in want})


@contextlib.contextmanager
def bypass_neurons(model: nn.Module, only: Any = None) -> Iterator[None]:
    """While the block runs, sites pass numbers (centred, where they are); with `only`, just those sites spike."""
    off = [m for m in model.modules() if isinstance(m, SpikeSite) and m.neuron is not None]
    off = [m for m in off if only is None or not any(m is keep for keep in only)]
    held = [m.neuron for m in off]
    try:
        for m in off:
            m.neuron = None
        yield
    finally:
        for m, neuron in zip(off, held):
            m.neuron = neuron
