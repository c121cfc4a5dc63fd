"""Presets of networks over time: names for filled `sequential` specs, for images, time series and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastsnn.deep_networks import images_only, resnet, spikformer
from fastsnn_console.typed import typed
from fastsnn_core import Coder, Model, Neuron
from fastsnn_core.errors import ArgumentError, check_options
from fastsnn_core.spec import from_table, to_table

NETWORKS: dict[str, dict[str, Any]] = {
    "snn-mlp": {"widths": (512, 256), "dropout": 0.1},
    "snn-recurrent": {"widths": (128,), "dropout": 0.1, "tau": 0.0, "spread": 1.0},
    "snn-conv": {"widths": (32, 64), "hidden": 256, "dropout": 0.2},
    "snn-resnet18": {
        "widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "block": "sew", "tdbn": False, "dropout": 0.0,
    },
    "spikformer-tiny": {"width": 64, "depth": 2, "heads": 4, "ratio": 2, "dropout": 0.0},
}  # fmt: skip
"""What each preset's own parameters are, and their defaults."""
CELLS: dict[str, dict[str, Any]] = {
    "snn-recurrent": {"kind": "recurrent_lif", "tau": 5.0, "surrogate": {"kind": "triangle"}},
    "snn-resnet18": {"kind": "lif", "fixed": True},
    "spikformer-tiny": {"kind": "lif", "fixed": True},
}
"""Neurons of presets that are not `lif` as it is: spikes that are added want one threshold."""
COMMON = ("input", "classes", "time_steps", "coder")
Layers = list[dict[str, Any]]


@typed
def network_spec(
    arch: str,
    neuron: Any = None,
    *,
    input: Sequence[int] | None = None,
    classes: int = 10,
    time_steps: int = 4,
    coder: Any = None,
    **changes: Any,
) -> Model:
    """The `sequential` that a preset means.

    `input` is the shape of one sample ([C, H, W], [D]); `classes` how many outputs there are, one value each at every
    step. A sample without time is shown for `time_steps` steps: behind the first layer, which is computed once (direct
    coding), or in front of it, written by a `coder` (rate, latency). Samples with time bring their own steps.
    """
    from fastsnn.presets import structure

    known = NETWORKS[arch]
    check_options(f"build(arch={arch!r})", changes, [*COMMON, *known])
    shape = tuple(input) if input is not None else (1, 28, 28)
    for name, number in (("classes", classes), ("time_steps", time_steps)):
        if number < 1:
            raise ArgumentError(f"{name} is a whole number of at least 1, got {number!r}")
    if neuron is None:
        neuron = CELLS.get(arch, {"kind": "lif"})
    cell = structure({"kind": neuron} if isinstance(neuron, str) else neuron, Neuron)
    spikes = {"op": "spikes", "neuron": to_table(cell)}
    begin: Layers = [{"op": "repeat", "steps": time_steps}]
    front: Layers = []
    if coder is not None:
        written = structure({"kind": coder} if isinstance(coder, str) else coder, Coder)
        front, begin = [{"op": "encode", "steps": time_steps, "coder": to_table(written)}], []
    builders: dict[str, Any] = {
        "snn-mlp": mlp, "snn-conv": conv, "snn-recurrent": mlp, "snn-resnet18": resnet, "spikformer-tiny": spikformer,
    }  # fmt: skip
    build = builders[arch]
    how = known | changes
    last: Layers = [{"op": "linear", "size": classes}]
    if tau := how.pop("tau", None):
        last.append({"op": "integrate", "tau": float(tau)})
    layers = front + build(shape, begin, spikes, **how) + last
    return from_table({"fastsnn": 1, "model": {"kind": "sequential", "input": list(shape), "layers": layers}}).model


@typed
def mlp(
    shape: tuple[int, ...],
    begin: Layers,
    spikes: dict[str, Any],
    widths: Sequence[int],
    dropout: float,
    spread: float = 0.0,
) -> Layers:
    """Linear, batch norm, spikes, for each width; β of the batch norms from ±`spread` at first."""
    layers: Layers = [] if len(shape) == 1 else [{"op": "flatten"}]
    for n, width in enumerate(widths):
        norm = {"op": "batch_norm"} | ({"spread": float(spread)} if spread else {})
        layers += [{"op": "linear", "size": width, "bias": False}, norm]
        layers += (begin if n == 0 else []) + [spikes]
    return layers + ([{"op": "dropout", "p": dropout}] if dropout else [])


@typed
def conv(
    shape: tuple[int, ...],
    begin: Layers,
    spikes: dict[str, Any],
    widths: Sequence[int],
    hidden: int,
    dropout: float,
) -> Layers:
    """Convolution, max pool, batch norm, spikes, for each width; then a hidden layer of spikes.

    Pools stand in front of the spikes: a quarter of the neurons, and every spike is an event of a convolution.
    """
    images_only("snn-conv", shape)
    layers: Layers = []
    for n, width in enumerate(widths):
        layers += [{"op": "conv2d", "size": width, "kernel": [3], "padding": [1], "bias": False}]
        layers += [{"op": "max_pool", "kernel": [2]}, {"op": "batch_norm"}]
        layers += (begin if n == 0 else []) + [spikes]
    layers += [{"op": "flatten"}, {"op": "linear", "size": hidden, "bias": False}, {"op": "batch_norm"}, spikes]
    return layers + ([{"op": "dropout", "p": dropout}] if dropout else [])
