"""Batch norms folded into the layers before them: the network that is deployed."""

from __future__ import annotations

import copy
from typing import Any

import attrs
from torch import nn

from fastsnn_conversion.norm_folding import affine, fold_back
from fastsnn_conversion.spike_layers import AvgPool, MaxPool
from fastsnn_core.site import SpikeSite
from fastsnn_model_sequential.blocks import ResidualBlock, SpikingAttention
from fastsnn_model_sequential.layer import Layer


def fold_batch_norms(model: Any) -> Any:
    """A copy of a `SequentialModule` without its batch norms, in evaluation mode: a x + b went into W and b before it.

    Also through max pools (where a > 0) and average pools, in residuals and in spiking attentions. The same values but
    for rounding, so a potential just at its threshold may spike otherwise. A norm with nothing that fits before it
    stays. The copy is in the count runtime.
    """
    old = copy.deepcopy(model).eval()
    for module in old.modules():
        if isinstance(module, SpikeSite):
            module.coding = None
    new = type(model)(folded_spec(old)).eval()
    new.load_state_dict(old.state_dict(), assign=True)  # in the types and places that they have
    for name in ("meta", "sections"):
        if hasattr(model, name):
            setattr(new, name, copy.deepcopy(getattr(model, name)))
    return new


def folded_spec(network: Any) -> Any:
    """Folds `network` in place, leaving identities behind; the spec that it has then."""
    layers: list[Layer] = list(network.spec.layers)
    for i, module in enumerate(network.layers):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            at = i - 1
            while at >= 0 and passes(network.layers[at], module):
                at -= 1
            if at >= 0 and fold_back(module, network.layers[at]):
                network.layers[i], layers[i] = nn.Identity(), Layer(op="identity")
                layers[at] = attrs.evolve(layers[at], bias=True)
        elif isinstance(module, ResidualBlock):
            nested = {n: folded_spec(m) for n in ("part", "shortcut") if hasattr(m := getattr(module, n), "layers")}
            layers[i] = attrs.evolve(layers[i], **nested)
        elif isinstance(module, SpikingAttention) and module.normed:
            for name in module.names:
                fold_back(module.norms[name], module.linears[name])
                module.norms[name] = nn.Identity()
            layers[i] = attrs.evolve(layers[i], norms=False)
        elif hasattr(module, "layers") and layers[i].op == "part":
            layers[i] = attrs.evolve(layers[i], part=folded_spec(module))
    return attrs.evolve(network.spec, layers=tuple(layers))


def passes(layer: nn.Module, norm: Any) -> bool:
    """Is norm(layer(x)) = layer(norm(x))?"""
    if isinstance(layer, MaxPool):
        return bool((affine(norm)[0] > 0).all())
    padding = getattr(layer, "padding", 1)
    padded = any(padding) if isinstance(padding, tuple) else padding
    return isinstance(layer, nn.Identity) or (isinstance(layer, AvgPool) and not padded)
