"""``fastsnn show nir``: what can be said in NIR exactly, approximately or not at all, found by trying."""

from __future__ import annotations

from typing import Any

import torch

from fastsnn_console.tables import markdown_table
from fastsnn_core import build, create
from fastsnn_model_nir_graph import NirGraph, NirNode
from fastsnn_model_nir_graph.units import KINDS

SIZES: dict[str, dict[str, Any]] = {
    "Linear": {"shape": (3, 4)}, "Affine": {"shape": (3, 4), "bias": True},
    "Conv1d": {"shape": (2, 2, 3), "stride": (1,), "padding": (1,), "dilation": (1,), "bias": True},
    "Conv2d": {"shape": (2, 2, 3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "bias": True},
    "AvgPool2d": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)},
    "SumPool2d": {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}, "Flatten": {"dims": (0, -1)},
}  # fmt: skip
INPUTS = {"Conv1d": (2, 5), "Conv2d": (2, 4, 4), "AvgPool2d": (2, 4, 4), "SumPool2d": (2, 4, 4), "Flatten": (2, 3)}
NEURONS: dict[str, dict[str, Any]] = {
    "lif, hard_reset": {"kind": "lif", "hard_reset": True}, "lif": {"kind": "lif"},
    "lif, reset_delay": {"kind": "lif", "reset_delay": True},
    "adaptive_threshold": {"kind": "adaptive_threshold"},
}  # fmt: skip
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "linear": ({"op": "linear", "size": 3}, (4,)),
    "conv1d": ({"op": "conv1d", "size": 2, "kernel": [3]}, (2, 6)),
    "conv2d": ({"op": "conv2d", "size": 2, "kernel": [3]}, (2, 6, 6)),
    "conv2d, padding_mode reflect": (
        {"op": "conv2d", "size": 2, "kernel": [3], "padding": [1], "padding_mode": "reflect"}, (2, 6, 6),
    ),
    "avg_pool": ({"op": "avg_pool", "kernel": [2]}, (2, 4, 4)),
    "max_pool": ({"op": "max_pool", "kernel": [2]}, (2, 4, 4)),
    "flatten": ({"op": "flatten"}, (2, 3)),
    "batch_norm": ({"op": "batch_norm"}, (4,)),
    "relu": ({"op": "relu"}, (4,)),
    **{f"spikes: {name}": ({"op": "spikes", "neuron": neuron}, (4,)) for name, neuron in NEURONS.items()},
}  # fmt: skip


@torch.no_grad()
def judged_nir(model: Any, x: torch.Tensor) -> tuple[str, str]:
    """``(exact | approximate | refused, note)`` of a model, written, read back and run on `x`."""
    import tempfile
    from pathlib import Path

    from fastsnn_exporter_nir import NirFile

    exporter = NirFile(portable=False)
    if reasons := exporter.unsupported(model):
        return "refused", reasons[0].partition(": ")[2] or reasons[0]
    with tempfile.TemporaryDirectory() as folder:
        exporter.export(model, Path(folder, "x.nir"))
        found = exporter.load(Path(folder, "x.nir"))(x)
    wanted = model(x)
    if torch.equal(found, wanted):
        return "exact", "equal bits"
    error = float((found - wanted).abs().max())
    return (
        "exact" if error <= 1e-6 * float(wanted.abs().max()) else "approximate"
    ), f"differs by {error:.1g} at most (rounding)"


def nir_table() -> list[dict[str, str]]:
    """A row for every node of NIR and every layer that was tried."""
    from fastsnn_core import Model
    from fastsnn_core.spec import converter

    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind in KINDS:
            if kind in ("Input", "Pass"):
                continue
            shape = INPUTS.get(kind, (4,))
            node = NirNode(
                name="n",
                kind=kind,
                sources=("input",),
                **(
                    {"shape": (4,)} | SIZES.get(kind, {})
                    if kind not in ("AvgPool2d", "SumPool2d", "Flatten")
                    else SIZES[kind]
                ),
            )
            model: Any = build(NirGraph(input=shape, nodes=(node,), output="n", dt=1e-4)).eval()
            if kind == "Delay":
                model.units[0].get_buffer("delay").fill_(3e-4)
            verdict, note = judged_nir(model, torch.rand(2, 9, *shape) * 3)
            rows.append({"what": f"NIR {kind}", "read": "yes", "write": verdict, "note": note})
        for name, (layer, shape) in LAYERS.items():
            spec = converter().structure({"kind": "sequential", "input": list(shape), "layers": [layer]}, Model)
            verdict, note = judged_nir(build(spec).eval(), torch.rand(2, 9, *shape) * 3)
            rows.append({"what": name, "read": "", "write": verdict, "note": note})
    rows.append(
        {
            "what": "decoder (language models)",
            "read": "",
            "write": judged_nir(
                build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2)).eval(),
                torch.zeros(1, 2, dtype=torch.long),
            )[0],
            "note": "NIR has no attention, norms or token embeddings",
        }
    ) if has("decoder") else None
    return rows


def has(name: str) -> bool:
    """Is this model installed?"""
    from fastsnn_core.plugins import registry

    return name in registry().names("model")


def show_nir(bundle: str | None = None) -> tuple[Any, str]:
    """What NIR can say; of a bundle, whether it can be written, and what stands in the way."""
    if bundle is not None:
        from fastsnn_core import load
        from fastsnn_exporter_nir import NirFile

        reasons = NirFile().unsupported(load(bundle))
        return {"refused": reasons}, "\n".join(
            reasons
        ) or "every layer can be written: fastsnn export BUNDLE --to nir OUT.nir"
    rows = nir_table()
    return rows, markdown_table(rows)
