"""One frame through the two large layers of a trained conv SNN: torch float32 and INT8, and events with INT8 weights.

    python benchmarks/temporal_frame.py --bundle runs/mnist/model.snn [--json …]

Batch one, one thread, the counts of the last step of 64 MNIST test images in turn; medians of 300 calls, microseconds.
Events are a plain Numba loop over what is not silent, its weights channels-last, sums in 32 bits: equal to torch's
convolution of the same whole numbers, checked here. It is a measurement: no runtime of a `sequential` uses it yet.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from convert_images import idx
from torch import Tensor, nn

from fastsnn_core import load
from fastsnn_core.probe import probe

IMAGES = 64


@numba.njit
def conv_events(counts, weight, out):  # type: ignore[no-untyped-def]
    """Same-padded 3 × 3: counts ``[C,H,W]``, weight ``[C,3,3,O]``, out ``[H,W,O]``."""
    channels, height, width = counts.shape
    out[:] = 0
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                n = np.int32(counts[c, y, x])
                if n != 0:
                    for a in range(max(0, y + 2 - height), min(3, y + 2)):
                        for b in range(max(0, x + 2 - width), min(3, x + 2)):
                            for o in range(weight.shape[3]):
                                out[y + 1 - a, x + 1 - b, o] += n * np.int32(weight[c, a, b, o])


@numba.njit
def linear_events(counts, weight, out):  # type: ignore[no-untyped-def]
    """Counts ``[D]``, weight ``[D,O]``."""
    out[:] = 0
    for d in range(len(counts)):
        n = np.int32(counts[d])
        if n != 0:
            for o in range(weight.shape[1]):
                out[o] += n * np.int32(weight[d, o])


def median_us(call: Callable[[int], Any]) -> float:
    """Of 300 calls, each with another image."""
    turn, times = itertools.cycle(range(IMAGES)), []
    for n in range(320):
        at, begin = next(turn), time.perf_counter()
        call(at)
        times += [time.perf_counter() - begin] if n >= 20 else []
    return 1e6 * statistics.median(times)


def in_int8(weight: Tensor) -> Tensor:
    """Whole numbers, one step per output."""
    scale = weight.flatten(1).abs().amax(1) / 127
    return (weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)


def torch_int8(layer: nn.Module, images: Tensor, engine: str) -> float:
    """Of torch's statically quantised layer on images that are quantised already."""
    torch.backends.quantized.engine = engine
    net: Any = nn.Sequential(torch.ao.quantization.QuantStub(), layer).eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig(engine)
    net = torch.ao.quantization.prepare(net)
    net(images)
    net = torch.ao.quantization.convert(net)
    ready = [net[0](image[None]) for image in images]
    return median_us(lambda n: net[1](ready[n]))


@torch.no_grad()
def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--bundle", required=True, help="of arch snn-conv, trained on MNIST")
    args.add_argument("--json")
    opts = args.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's quantisation is deprecated, and is what there is
    model: Any = load(opts.bundle).eval()
    model = model.folded()
    images = idx("t10k-images-idx3-ubyte.gz")[:IMAGES, None].float() / 255
    with probe(model) as trace:
        model(images)
    conv = [m for m in model.modules() if isinstance(m, nn.Conv2d)][1]
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    rows = []
    for name, layer, record in zip(("conv", "linear"), (conv, linear), trace.values()):
        is_conv = isinstance(layer, nn.Conv2d)
        shape = (layer.in_channels, 14, 14) if is_conv else (layer.in_features,)
        counts = record.spikes.counts[:, -1].reshape(IMAGES, *shape)
        twin = nn.Conv2d(*layer.weight.shape[1::-1], 3, padding=1, bias=False) if is_conv else nn.Linear(
            *layer.weight.shape[::-1], bias=False
        )  # fmt: skip
        twin.weight = nn.Parameter(layer.weight.detach().clone())
        whole, small = in_int8(twin.weight), [c.to(torch.int8).contiguous().numpy() for c in counts]
        if is_conv:
            packed, out = whole.permute(1, 2, 3, 0).contiguous().numpy(), np.zeros((14, 14, len(whole)), np.int32)
            run = conv_events
            wanted = nn.functional.conv2d(counts, whole.float(), padding=1).permute(0, 2, 3, 1)
        else:
            packed, out, run = whole.T.contiguous().numpy(), np.zeros(len(whole), np.int32), linear_events
            wanted = counts @ whole.float().T
        for c, w in zip(small, wanted):
            run(c, packed, out)
            assert (out == w.numpy()).all()
        row: dict[str, Any] = {"layer": name, "density": float((counts != 0).double().mean())}
        row["float32"] = median_us(lambda n, twin=twin, counts=counts: twin(counts[n : n + 1]))
        for engine in ("fbgemm", "onednn"):
            row[f"torch INT8 {engine}"] = torch_int8(twin, counts, engine)
        row["events INT8"] = median_us(lambda n, run=run, s=small, p=packed, o=out: run(s[n], p, o))
        rows.append(row)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in row.items()))
    if opts.json:
        Path(opts.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
