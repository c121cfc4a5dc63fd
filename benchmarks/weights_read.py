"""Which share of every layer's weights a token reads: rows of inputs that spiked; of `up`, rows behind open gates."""

from __future__ import annotations

from typing import Any

import attrs
import torch


@attrs.frozen
class Read:
    """A layer, the share of its inputs that spiked (1: they are no spikes), and the share of its weights read."""

    layer: Any
    active: float
    read: float


def share(x: Any) -> float:
    """Of channels that spiked; 1 for numbers."""
    return float((x.counts != 0).float().mean()) if hasattr(x, "counts") else 1.0


@torch.inference_mode()
def weights_read(model: Any, tokens: torch.Tensor) -> dict[str, Read]:
    """By name, on ``[B,T]`` tokens; a tied embedding is the head."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "weight") and hasattr(m, "in_features")}
    active: dict[str, float] = {}
    handles = []
    for name, layer in layers.items():

        def hook(_: Any, args: tuple[Any, ...], name: str = name) -> None:
            active[name] = share(args[0])

        handles.append(layer.register_forward_pre_hook(hook))
    model(tokens)
    for handle in handles:
        handle.remove()
    if model.head is None:
        layers["head"], active["head"] = model.embed, share(model(tokens, head=False))
    read = dict(active)
    for name in active:
        if name.endswith(".up") and name.replace(".up", ".gate") in active:
            read[name] = min(active[name], active[name.replace(".up", ".down")])
    return {name: Read(layers[name], active[name], read[name]) for name in active}
