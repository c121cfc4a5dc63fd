"""One frame of a trained conv SNN by events with INT8 weights, beside torch float32 and INT8; and its large layers.

    python benchmarks/temporal_frame.py --bundle runs/mnist/model.snn [--json …]

Batch one, one thread, MNIST test images in turn, rounds interleaved, medians in microseconds. *image*: one picture,
shown for the T steps of the network. *step*: one frame of a stream, with the state. Ours is the bundle that
``export --to w8a`` writes, as a user calls it. torch's is the same network (batch norms folded) in plain modules, layer
by layer over all T steps or step by step, whichever is faster; INT8 is torch's static quantisation of every layer,
calibrated on these images. *Conv2d*, *Linear*: the second convolution and the hidden layer alone, on the spikes of the
last step, which torch's INT8 gets quantised already; events are the operators that the network runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from convert_images import idx
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn import FastSNN
from fastsnn_core import load
from fastsnn_core.ops.dispatch import paths, reasons
from fastsnn_core.probe import probe
from fastsnn_events.count_conv import COUNT_CONV
from fastsnn_events.linear import COUNT_PROJECT

IMAGES, ROUNDS = 64, 5


def median_us(call: Callable[[int], Any], calls: int = 300) -> float:
    """Of so many calls, each with another image."""
    turn, times = itertools.cycle(range(IMAGES)), []
    for n in range(calls + 20):
        at, begin = next(turn), time.perf_counter()
        call(at)
        times += [time.perf_counter() - begin] if n >= 20 else []
    return 1e6 * statistics.median(times)


class Plain(nn.Module):
    """The folded network in modules of torch: ``x [B, 1, 28, 28] -> [B, T, classes]``, or a step with its membranes."""

    def __init__(self, folded: Any, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        layers = [m for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        neurons = [m.neuron for m in folded.layers if hasattr(m, "neuron")]
        self.layers = nn.ModuleList(wrap(m) for m in layers)
        self.constants = [(n.beta, float(n.theta)) for n in neurons]
        self.steps = next(layer.steps for layer in folded.spec.layers if layer.op == "repeat")

    def fire(self, n: int, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Spikes times θ, and the membrane."""
        beta, theta = self.constants[n]
        u = x / theta if v is None else beta * v + x / theta
        s = (u >= 1).float()
        return s * theta, u - s

    def over(self, n: int, x: Tensor) -> Tensor:
        """``x [T, …]``, all steps of one image."""
        out, v = [], None
        for t in range(self.steps):
            s, v = self.fire(n, x[t if len(x) > 1 else 0], v)
            out.append(s)
        return torch.stack(out)

    def forward(self, x: Tensor) -> Tensor:
        """One image, layer by layer."""
        a, b, c, d = self.layers
        x = self.over(0, F.max_pool2d(a(x), 2))
        x = self.over(1, F.max_pool2d(b(x), 2))
        return d(self.over(2, c(x.flatten(1))))[None]

    def stepwise(self, x: Tensor) -> Tensor:
        """One image, step by step; the first layer once."""
        first, out, state = F.max_pool2d(self.layers[0](x), 2), [], None
        for _ in range(self.steps):
            y, state = self.step(first, state, 1)
            out.append(y)
        return torch.stack(out, 1)

    def step(self, x: Tensor, state: Any, begin: int = 0) -> tuple[Tensor, Any]:
        """One frame of a stream."""
        left = []
        for n, layer in enumerate(self.layers):
            if n >= begin:
                x = layer(x.flatten(1) if n == 2 else x)
            if n < 3:
                x = F.max_pool2d(x, 2) if begin <= n < 2 else x
                x, v = self.fire(n, x, None if state is None else state[n])
                left.append(v)
        return x, left


def quantised(folded: Any, images: Tensor, engine: str) -> Plain:
    """torch's static quantisation of every layer."""
    torch.backends.quantized.engine = engine
    net: Any = Plain(folded, lambda m: torch.ao.quantization.QuantWrapper(nn.Sequential(m))).eval()
    for layer in net.layers:
        layer.qconfig = torch.ao.quantization.get_default_qconfig(engine)
    net = torch.ao.quantization.prepare(net)
    for image in images:
        net(image[None])
    done: Plain = torch.ao.quantization.convert(net)
    return done


def whole_network(bundle: str, images: Tensor) -> list[dict[str, Any]]:
    """Rows *image* and *step*."""
    model: Any = load(bundle).eval()
    with tempfile.TemporaryDirectory() as folder:
        small: Any = load(FastSNN.export(model, f"{folder}/small.snn", to="w8a")).eval().runtime("event", "binary", 1)
    folded = model.folded()
    nets: dict[str, Any] = {"torch float32": Plain(folded, lambda m: m).eval()}
    for engine in ("fbgemm", "onednn"):
        nets[f"torch INT8 {engine}"] = quantised(folded, images, engine)

    def shown(n: int) -> Any:
        return small(images[n : n + 1])

    found: dict[str, dict[str, list[float]]] = {"image": {}, "step": {}}
    calls: dict[str, dict[str, Callable[[int], Any]]] = {"image": {"events INT8": shown}, "step": {}}
    kept: dict[str, Any] = {}

    def stepped(name: str, call: Callable[..., Any]) -> Callable[[int], Any]:
        def one(n: int) -> None:
            _, kept[name] = call(images[n : n + 1], kept.get(name))

        return one

    calls["step"]["events INT8"] = stepped("ours", lambda x, s: small(x[None], s, return_state=True))
    answers = {"events INT8": [int(shown(n).mean(1).argmax()) for n in range(IMAGES)]}
    for name, net in nets.items():
        calls["image"][name] = lambda n, net=net: net(images[n : n + 1])
        calls["image"][f"{name}, stepwise"] = lambda n, net=net: net.stepwise(images[n : n + 1])
        assert torch.equal(net(images[:1]).argmax(-1), net.stepwise(images[:1]).argmax(-1))
        calls["step"][name] = stepped(name, net.step)
        answers[name] = [int(net(images[n : n + 1]).mean(1).argmax()) for n in range(IMAGES)]
    rows: list[dict[str, Any]] = []
    for kind, each in calls.items():
        for _ in range(ROUNDS):
            for name, call in each.items():
                found[kind].setdefault(name, []).append(median_us(call, 60))
        row = {name: statistics.median(times) for name, times in found[kind].items()}
        best = min(row[name] for name in row if "INT8" in name and "torch" in name)
        floats = min(row[name] for name in row if "float32" in name)
        rows.append({"what": kind} | row | {
            "times float32": floats / row["events INT8"], "times INT8": best / row["events INT8"],
        })  # fmt: skip
    rows[0]["answers that differ from float32"] = {
        name: sum(a != b for a, b in zip(each, answers["torch float32"])) for name, each in answers.items()
    }
    shown(0)
    rows[0]["path"] = f"{paths()['frame_run']}: {reasons()['frame_run']}"
    return rows


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


def single_layers(bundle: str, images: Tensor) -> list[dict[str, Any]]:
    """The two large layers alone."""
    model: Any = load(bundle).eval()
    with tempfile.TemporaryDirectory() as folder:
        small: Any = load(FastSNN.export(model, f"{folder}/small.snn", to="w8a")).eval()
    model, rows = model.folded(), []
    with probe(small) as trace:
        small(images)
    for at, record in zip((5, 10), trace.values()):
        whole, layer = small.layers[at], model.layers[at]
        shape = (whole.in_channels, 14, 14) if at == 5 else (whole.in_features,)
        counts = record.spikes.counts[:, -1].reshape(IMAGES, *shape).contiguous()
        one = torch.ones(1)
        if at == 5:

            def run(n: int, whole: Any = whole, c: Tensor = counts, one: Tensor = one) -> Tensor:
                return COUNT_CONV("cpu", c[n : n + 1], whole.weight, whole.scale[:, 0], one, whole.window)
        else:

            def run(n: int, whole: Any = whole, c: Tensor = counts, one: Tensor = one) -> Tensor:
                return COUNT_PROJECT("cpu", c[n : n + 1], whole.weight, whole.scale[:, 0], one[None])

        row: dict[str, Any] = {"what": type(layer).__name__, "density": float((counts != 0).double().mean())}
        row["torch float32"] = median_us(lambda n, twin=layer, counts=counts: twin(counts[n : n + 1]))
        for engine in ("fbgemm", "onednn"):
            row[f"torch INT8 {engine}"] = torch_int8(layer, counts, engine)
        row["events INT8"] = median_us(run)
        rows.append(row)
    return rows


@torch.inference_mode()
def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--bundle", required=True, help="of arch snn-conv, trained on MNIST")
    args.add_argument("--json")
    opts = args.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's quantisation is deprecated, and is what there is
    images = idx("t10k-images-idx3-ubyte.gz")[:IMAGES, None].float() / 255
    rows = whole_network(opts.bundle, images) + single_layers(opts.bundle, images)
    for row in rows:
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if opts.json:
        Path(opts.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
