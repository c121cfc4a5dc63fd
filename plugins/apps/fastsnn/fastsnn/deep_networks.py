"""Presets with blocks: a spiking ResNet-18 and a small Spikformer, as lists of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastsnn_console.typed import typed
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import from_table

Layers = list[dict[str, Any]]
LARGE = 128  # pixels: from here on the stem shrinks images by four, as for ImageNet


def nested_table(shape: Sequence[int], layers: Layers) -> dict[str, Any]:
    """A `sequential` of its own, as a table."""
    return {"kind": "sequential", "input": list(shape), "layers": layers}


def shape_behind(shape: Sequence[int], layers: Layers) -> tuple[int, ...]:
    """Of one sample."""
    found: Any = from_table({"fastsnn": 1, "model": nested_table(shape, layers)}).model
    return tuple(found.shapes()[-1])


def images_only(arch: str, shape: tuple[int, ...]) -> None:
    """Error unless samples are ``[C, H, W]``."""
    if len(shape) != 3:
        raise FastSNNError(f"{arch} takes images [C, H, W], got input = {list(shape)}; for [D] there is snn-mlp")


def convolved(size: int, kernel: int, norm: dict[str, Any], stride: int = 1) -> Layers:
    """A convolution without bias, and its norm."""
    layer = {"op": "conv2d", "size": size, "kernel": [kernel], "stride": [stride], "padding": [kernel // 2]}
    return [layer | {"bias": False}, norm]


@typed
def resnet(
    shape: tuple[int, ...],
    begin: Layers,
    spikes: dict[str, Any],
    widths: Sequence[int],
    depths: Sequence[int],
    block: str,
    tdbn: bool,
    dropout: float,
) -> Layers:
    """A stem and stages of residual blocks of two convolutions each, the mean over the places.

    ``block = "sew"``: (conv, norm, spikes) twice, added to what came in, which are spikes (Fang et al. 2021).
    ``block = "ms"``: (spikes, conv, norm) twice, added to numbers (Hu et al. 2021). A shortcut that changes the shape
    is a convolution of one pixel and a norm, behind or in front of spikes likewise. `tdbn`: tdBN in place of batch norm
    (α = 1/√2 where a branch is added).
    """
    images_only("snn-resnet18", shape)
    if block not in ("sew", "ms"):
        raise FastSNNError(f"block is 'sew' (adds spikes) or 'ms' (adds membranes), got {block!r}")
    if len(widths) != len(depths):
        raise FastSNNError(f"widths {list(widths)} and depths {list(depths)} name different numbers of stages")
    theta = float(spikes["neuron"].get("threshold", 1.0))

    def norm(alpha: float = 1.0) -> dict[str, Any]:
        return {"op": "td_batch_norm", "alpha": alpha, "threshold": theta} if tdbn else {"op": "batch_norm"}

    sew, added = block == "sew", 0.5**0.5
    layers: Layers = convolved(widths[0], 3, norm())
    if min(shape[1:]) >= LARGE:
        layers = convolved(widths[0], 7, norm(), 2)
        layers.append({"op": "max_pool", "kernel": [3], "stride": [2], "padding": [1]})
    layers += begin + ([spikes] if sew else [])
    now = shape_behind(shape, layers)
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        for n in range(depth):
            stride = 2 if stage and not n else 1
            first, second = convolved(width, 3, norm(), stride), convolved(width, 3, norm(added if not sew else 1.0))
            branch = [*first, spikes, *second, spikes] if sew else [spikes, *first, spikes, *second]
            table: dict[str, Any] = {"op": "residual", "part": nested_table(now, branch)}
            if stride > 1 or now[0] != width:
                beside = convolved(width, 1, norm(added if not sew else 1.0), stride)
                table["shortcut"] = nested_table(now, [*beside, spikes] if sew else [spikes, *beside])
            layers.append(table)
            now = shape_behind(now, branch)
    layers += [] if sew else [spikes]
    layers += [{"op": "adaptive_avg_pool", "shape": [1, 1]}, {"op": "flatten"}]
    return layers + ([{"op": "dropout", "p": dropout, "fixed": True}] if dropout else [])


@typed
def spikformer(
    shape: tuple[int, ...],
    begin: Layers,
    spikes: dict[str, Any],
    width: int,
    depth: int,
    heads: int,
    ratio: int,
    dropout: float,
) -> Layers:
    """Spiking patch splitting, a convolution as position embedding, `depth` encoder blocks, the mean over the places.

    Patches: (conv, norm, spikes, pool) to 1/2, 1/4 of each side. A block: x + SSA(x), then x + MLP(x) with `ratio`
    times the width; everything that is added are spikes. Zhou et al. 2023 (arXiv 2209.15425).
    """
    images_only("spikformer-tiny", shape)
    norm, pool = {"op": "batch_norm"}, {"op": "max_pool", "kernel": [2]}
    layers: Layers = [*convolved(width // 2, 3, norm), *begin, spikes, pool, *convolved(width, 3, norm), spikes, pool]
    now = shape_behind(shape, layers)
    layers.append({"op": "residual", "part": nested_table(now, [*convolved(width, 3, norm), spikes])})
    attention = {"op": "spiking_attention", "heads": heads, "neuron": spikes["neuron"]}
    mlp = [*convolved(ratio * width, 1, norm), spikes, *convolved(width, 1, norm), spikes]
    for _ in range(depth):
        layers += [{"op": "residual", "part": nested_table(now, part)} for part in ([attention], mlp)]
    layers += [{"op": "adaptive_avg_pool", "shape": [1, 1]}, {"op": "flatten"}]
    return layers + ([{"op": "dropout", "p": dropout, "fixed": True}] if dropout else [])
