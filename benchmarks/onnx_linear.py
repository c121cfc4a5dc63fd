"""Linear attention in ONNX Runtime: Scan beside com.microsoft.LinearAttention, milliseconds of a prompt and a token.

    OMP_NUM_THREADS=1 python benchmarks/onnx_linear.py

Floor of a token: the weights read once; what differs between the two is the loop over T alone.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from harness import interleave

from fastsnn_core import build, create
from fastsnn_exporter_onnx import Onnx
from fastsnn_exporter_onnx.runtime import OnnxNetwork


def main() -> None:
    """Print a row for each attention and length."""
    for kind in ("gla", "linear"):
        torch.manual_seed(0)
        sizes = {"vocab_size": 257, "d_model": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2}
        model = build(create("model", "decoder", attention=(create("attention", kind),), **sizes)).eval()
        with tempfile.TemporaryDirectory() as folder:
            networks = {
                how: OnnxNetwork(Onnx(linear_attention=how).export(model, Path(folder, f"{how}.onnx")), threads=1)
                for how in ("scan", "com.microsoft")
            }
            for length in (1, 64, 512):
                ids, calls = torch.randint(0, 257, (1, length)), max(1, 20 // length)

                def many(network: OnnxNetwork, ids: torch.Tensor = ids, calls: int = calls) -> None:
                    for _ in range(calls):
                        network(ids)

                rows = interleave({how: partial(many, n) for how, n in networks.items()}, 9)
                ms = {how: 1e3 * statistics.median(rows[how]) / calls for how in networks}
                ratio = ms["scan"] / ms["com.microsoft"]
                print(
                    f"{kind:8}{length:5} tokens  " + "  ".join(f"{h} {m:.2f} ms" for h, m in ms.items()),
                    f" {ratio:.2f}x",
                )


if __name__ == "__main__":
    main()
