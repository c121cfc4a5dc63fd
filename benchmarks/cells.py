"""Neuron cells over time: forward and backward, compiled, as the loop that defines each, and SpikingJelly's.

    python benchmarks/cells.py [--times 32] [--rounds 5] [--json out.json]

Each row runs one cell on ``[16, T, 256]``, sums its spikes and takes the gradient of its input; rounds are interleaved
and times are processor milliseconds, medians. SpikingJelly's multi-step node stands beside it where it is installed and
has the cell (other constants: only the time is compared).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

CELLS = ("plif", "alif", "eif", "qif", "izhikevich", "refractory_lif", "lateral_lif", "axonal_delay", "recurrent_lif")


def cell_of_spikingjelly(name: str) -> nn.Module | None:
    """SpikingJelly's multi-step node of that equation."""
    kinds = {"plif": "ParametricLIFNode", "eif": "EIFNode", "qif": "QIFNode", "izhikevich": "IzhikevichNode"}
    if name not in kinds or importlib.util.find_spec("spikingjelly") is None:
        return None
    from spikingjelly.activation_based import neuron

    node: nn.Module = getattr(neuron, kinds[name])(step_mode="m", detach_reset=True)
    return node


def cells(opts: argparse.Namespace) -> dict[str, Any]:
    """Processor milliseconds of forward and backward of each cell: compiled, as a loop, SpikingJelly's."""
    from fastsnn_core import create
    from fastsnn_leaky import cells as library

    rows: list[dict[str, Any]] = []
    compiled = library.compiled_steps
    for steps in opts.times:
        for name in CELLS:
            neuron = create("neuron", name, fixed=True).build(256)
            node = cell_of_spikingjelly(name)
            x = torch.randn(16, steps, 256)
            found: dict[str, list[float]] = {"compiled": [], "loop": [], "spikingjelly": []}
            for round_ in range(opts.rounds + 1):
                for who, times in found.items():
                    if who == "spikingjelly" and node is None:
                        continue
                    places = [library, importlib.import_module(type(neuron).__module__)]
                    for place in places:
                        if hasattr(place, "compiled_steps"):
                            place.compiled_steps = compiled if who == "compiled" else no_kernel  # type: ignore[attr-defined]
                    leaf = x.clone().requires_grad_()
                    begin = time.process_time()
                    if node is not None and who == "spikingjelly":
                        node.reset()  # type: ignore[operator]
                        node(leaf.transpose(0, 1).contiguous()).sum().backward()
                    else:
                        neuron(leaf)[0].counts.sum().backward()
                    if round_:
                        times.append(1e3 * (time.process_time() - begin))
                    for place in places:
                        if hasattr(place, "compiled_steps"):
                            place.compiled_steps = compiled  # type: ignore[attr-defined]
            row = {"T": steps, "cell": name} | {k: statistics.median(v) if v else None for k, v in found.items()}
            rows.append(row)
            peer = f"{row['spikingjelly']:8.2f} ms" if row["spikingjelly"] else "      no"
            print(
                f"T {steps:>4}  {name:<15} compiled {row['compiled']:8.2f} ms  loop {row['loop']:8.2f} ms  "
                f"{row['loop'] / row['compiled']:6.1f} ×  SpikingJelly {peer}"
            )
    return {"batch": 16, "width": 256, "rows": rows}


def no_kernel(*given: Any) -> None:
    """In the place of `compiled_steps`: the loop is taken."""


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--times", type=int, nargs="+", default=[32])
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--json")
    opts = args.parse_args()
    found = cells(opts)
    print(json.dumps(found))
    if opts.json:
        Path(opts.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
