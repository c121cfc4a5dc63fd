"""W8A-spike on real models: perplexity before and after, bytes in the bundle, and which scales pay.

    python benchmarks/w8a.py [--bundle wikitext.snn] [--windows 32] [--json out.json]

Every form is written as a bundle, loaded again, and measured on the same unseen windows: float counts (the model as it
was trained), INT8 with one scale per output, with groups of 128, 64 and 32 inputs, without the head and embedding, with
keys and values in INT8. The rival is the dense original in the same arithmetic (INT8 weights, eight-bit activations),
where there is one. Floor of the size: one byte per number. *score* is perplexity × bytes, the smaller the better.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import harness
import real
import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core import load, save
from fastsnn_core.state import nbytes
from fastsnn_integer.quantization import Quant, quantise

FORMS: dict[str, Quant | None] = {
    "float counts": None,
    "INT8, one scale per output": Quant(),
    "INT8, groups of 128": Quant(group=128),
    "INT8, groups of 64": Quant(group=64),
    "INT8, groups of 32": Quant(group=32),
    "INT8, head and embedding float": Quant(head=False, embed=False),
    "INT8, keys and values too": Quant(kv=True),
}
HEAD = ["", "perplexity", "change", "weights, bytes", "of float32", "bundle, of float32", "stream, bytes", "score"]


@torch.no_grad()
def nats(model: Any, windows: Tensor) -> float:
    """Mean cross-entropy over all predicted tokens."""
    total = 0.0
    for rows in windows.split(8):
        logits = model(rows[:, :-1])
        total += float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
    return total / windows[:, 1:].numel()


@torch.no_grad()
def measure(model: Any, windows: Tensor, folder: Path, name: str) -> dict[str, Any]:
    """One form, written and loaded again."""
    path = save(model, folder / f"{len(list(folder.iterdir()))}.snn")
    again: Any = load(path)
    state = again(windows[:1, :-1], return_state=True)[1]
    return {
        "perplexity": math.exp(nats(again, windows)),
        "weights_bytes": (path / "weights.safetensors").stat().st_size,
        "bundle_bytes": sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
        "stream_bytes": nbytes(state),
    }


def run(one: real.Real) -> dict[str, Any]:
    """All forms of one model."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, quant in FORMS.items():
            form = one.model if quant is None else quantise(one.model, quant)
            rows[name] = measure(form, one.windows, Path(scratch), name)
        if one.dense is not None:
            rows["dense original, float"] = measure(one.dense, one.windows, Path(scratch), "dense")
            rows["dense original, INT8"] = measure(quantise(one.dense), one.windows, Path(scratch), "dense 8")
    base = rows["float counts"]
    for name, row in rows.items():
        other = rows["dense original, float"] if name.startswith("dense") else base
        row["change"] = row["perplexity"] / other["perplexity"] - 1
        row["of_float32"] = row["weights_bytes"] / base["weights_bytes"]
        row["bundle_of_float32"] = row["bundle_bytes"] / base["bundle_bytes"]
        row["score"] = row["perplexity"] * row["weights_bytes"] / 1e6
    chosen = {n: r for n, r in rows.items() if n in ("INT8, one scale per output", "INT8, groups of 128")}
    return {
        "model": one.name,
        "tokens": one.windows[:, 1:].numel(),
        "floor_bytes": sum(t.numel() for t in one.model.parameters()),
        "rows": rows,
        "better_per_byte": min(chosen, key=lambda n: chosen[n]["score"]),
        "within_1_percent": rows["INT8, one scale per output"]["change"] <= 0.01,
        "at_most_027": rows["INT8, one scale per output"]["of_float32"] <= 0.27,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real.options(parser)
    parser.add_argument("--json")
    args = parser.parse_args()
    found = {}
    for one in real.models(args):
        result = found[one.name] = run(one)
        floor = result["floor_bytes"]
        print(f"{one.name}: {result['tokens']} tokens; floor {floor:,} bytes, one per number")
        cells = [
            [
                name, f"{row['perplexity']:.4f}", f"{row['change']:+.3%}", f"{row['weights_bytes']:,}",
                f"{row['of_float32']:.3f}", f"{row['bundle_of_float32']:.3f}", f"{row['stream_bytes']:,}",
                f"{row['score']:.3f}",
            ]
            for name, row in result["rows"].items()
        ]  # fmt: skip
        print(harness.table(HEAD, cells))
        print(f"better in perplexity per byte: {result['better_per_byte']}\n")
    harness.emit(found, args.json)


if __name__ == "__main__":
    main()
