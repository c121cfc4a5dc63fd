"""NeuroBench's metrics by their definitions, and what a count of c spikes costs beside them.

    footprint             bytes of parameters and buffers in memory
    connection_sparsity   zeros among the weights of linear layers and convolutions
    activation_sparsity   zeros among the outputs of sites, over all samples and steps
    synaptic_operations   per sample: weights that are not 0 behind inputs that are not 0; accumulates where a layer's
                          inputs are all -1, 0 or 1, else multiply-accumulates; dense: all weights behind all inputs

NeuroBench counts an input of c spikes once, as a multiplication. `additions` counts it as what runs in events: c
additions, Σ |c| over the inputs for every weight that is not 0 behind them. Inputs that are no counts are counted once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import sites
from fastsnn_core.spike_tensor import SpikeTensor

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@frozen
class NeuroBenchMetrics:
    """What `neurobench_metrics` measured; operations are per sample."""

    footprint: int
    connection_sparsity: float
    activation_sparsity: float
    effective_macs: float
    effective_acs: float
    dense: float
    additions: float


def weight_layers(model: nn.Module) -> dict[str, Any]:
    """Linear layers and convolutions by name; integer ones are refused."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, MATRICES)}
    weights = {n: getattr(m, "weight", None) for n, m in model.named_modules()}
    other = [n for n, w in weights.items() if isinstance(w, Tensor) and not w.is_floating_point()]
    if other or not found:
        what = f"{other[0]} has integer weights" if other else "it has no linear layer or convolution"
        raise FastSNNError(f"NeuroBench's metrics are of float networks; {what}. Measure the float bundle")
    return found


def counts(x: Any) -> Tensor:
    """The counts of spikes, or the numbers themselves."""
    return x.counts.detach().float() if isinstance(x, SpikeTensor) else x.detach().float()


def operations(layer: Any, x: Tensor, ones: bool = False) -> float:
    """Σ over outputs of ``x`` through a layer whose weights are 1 where they are not 0 (everywhere with `ones`)."""
    weight = torch.ones_like(layer.weight) if ones else (layer.weight != 0).to(layer.weight.dtype)
    weight, x = weight.double(), x.double()
    if isinstance(layer, nn.Linear):
        return float(F.linear(x, weight).sum())
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    if layer.padding_mode != "zeros":
        raise FastSNNError(f"padding_mode {layer.padding_mode!r} is not counted")
    return float(conv(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum())


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[tuple[list[tuple[Any, Tensor]], list[Tensor]]]:
    """``([(layer, counts that came in), …], [outputs of sites, …])`` of what runs inside the block."""
    inputs, outputs = list[tuple[Any, Tensor]](), list[Tensor]()
    handles = [
        m.register_forward_pre_hook(lambda layer, args: inputs.append((layer, counts(args[0]))))
        for m in weight_layers(model).values()
    ]
    for site in sites(model).values():
        handles.append(
            site.register_forward_hook(lambda _, args, y: outputs.append(counts(y[0] if isinstance(y, tuple) else y)))
        )
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def neurobench_metrics(model: Any, x: Tensor) -> NeuroBenchMetrics:
    """The metrics of a network on samples ``x [B, …]`` (``[B, T, …]`` with time), which are run once.

    Errors: integer weights, networks without layers, padding other than zeros.
    """
    with recording(model) as (inputs, outputs):
        model(x)
    macs = acs = dense = additions = 0.0
    for layer, given in inputs:
        nonzero = operations(layer, (given != 0).float())
        spiking = bool(((given == 0) | (given.abs() == 1)).all())
        macs, acs = (macs, acs + nonzero) if spiking else (macs + nonzero, acs)
        dense += operations(layer, torch.ones_like(given), ones=True)
        counted = bool((given == given.round()).all())
        additions += operations(layer, given.abs()) if counted else nonzero
    weights = [m.weight for m in weight_layers(model).values()]
    zeros = sum(int((w == 0).sum()) for w in weights)
    silent = sum(int((y == 0).sum()) for y in outputs)
    held = [*model.parameters(), *model.buffers()]
    n = len(x)
    return NeuroBenchMetrics(
        footprint=sum(t.numel() * t.element_size() for t in held),
        connection_sparsity=zeros / sum(w.numel() for w in weights),
        activation_sparsity=silent / max(1, sum(y.numel() for y in outputs)),
        effective_macs=macs / n, effective_acs=acs / n, dense=dense / n, additions=additions / n,
    )  # fmt: skip
