"""A training step (forward, backward, AdamW) of the spiking hybrid beside the dense transformer and a time-stepped SNN.

    python benchmarks/step_time.py [--lengths 512 4096] [--width 256 --layers 4 --tokens 4096] [--window 512]
                                   [--profile] [--rounds 7] [--json out.json]

*ours*: decoder with gated linear and sliding-window layers in turn and adaptive_threshold at every site. *dense*: the
same decoder with softmax attention (torch's fused kernel) and no spikes; the parameters differ by the gates of GLA.
*8 steps*: ours as time-stepped toolkits run it: every layer sees each token 8 times, and at each site stands
SpikingJelly's multi-step `LIFNode`; logits are averaged over the steps (only at the shortest length: it needs 8 times
the memory). Needs ``pip install --no-deps spikingjelly``; skipped by name where that is missing. Every row takes
`tokens` tokens a step. The floor is the matrix products that a step cannot do without, 6 · parameters · tokens flop, at
the rate torch reaches on one product of the feed-forward layer's sizes in the same rounds. ``--profile`` adds where the
time goes, by operator.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import build, create
from fastsnn_core.site import sites

VOCABULARY, STEPS = 1024, 8


class Stepped(nn.Module):
    """A spike site of a time-stepped network: ``[S·B,T,D]`` through a multi-step LIF neuron over S."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m", surrogate_function=surrogate.ATan())

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, None]:
        self.node.reset()
        return self.node(x.unflatten(0, (STEPS, -1))).flatten(0, 1), None


class SteppedModel(nn.Module):
    """The decoder on every token 8 times; logits are the mean over steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for name in sites(model):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Stepped())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens.repeat(STEPS, 1)).unflatten(0, (STEPS, -1)).mean(0)


def decoder(opts: argparse.Namespace, *attention: Any, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": opts.width, "n_layers": opts.layers, "n_heads": max(2, opts.width // 64)}
    return build(create("model", "decoder", vocab_size=VOCABULARY, attention=attention, **sizes, **changes))


def models(opts: argparse.Namespace, stepped: bool) -> dict[str, nn.Module | None]:
    hybrid = (create("attention", "gla"), create("attention", "sliding_window", window=opts.window))
    found: dict[str, nn.Module | None] = {
        "ours": decoder(opts, *hybrid, neuron=create("neuron", "adaptive_threshold", k=3.0)),
        "dense": decoder(opts, create("attention", "softmax"), sites=()),
    }
    if stepped:
        try:
            found["8 steps"] = SteppedModel(decoder(opts, *hybrid))
        except ImportError:
            found["8 steps"] = None
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def steps_of(found: dict[str, nn.Module | None], length: int, tokens: int) -> dict[str, harness.Run | None]:
    data = torch.randint(0, VOCABULARY, (max(1, tokens // length), length + 1))
    return {
        name: None if m is None else partial(step, m, torch.optim.AdamW(m.parameters(), fused=True), data)
        for name, m in found.items()
    }


def product(opts: argparse.Namespace) -> tuple[harness.Run, float]:
    """``(run, flops)`` of one product of the feed-forward layer's sizes."""
    a, w = torch.randn(opts.tokens, opts.width), torch.randn(opts.width, -(-8 * opts.width // 24) * 8)
    return lambda: a @ w, 2.0 * a.numel() * w.shape[1]


def profile(run: harness.Run, rows: int = 14) -> str:
    """Where three steps spend their time, by operator."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(3):
            run()
    found = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in found)
    table = [[e.key[:52], e.self_cpu_time_total / 3e3, e.self_cpu_time_total / total, e.count // 3] for e in found]
    return harness.table(["operator", "ms a step", "share", "calls"], table[:rows])


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--lengths", type=int, nargs="+", default=[512, 4096])
    args.add_argument("--width", type=int, default=256)
    args.add_argument("--layers", type=int, default=4)
    args.add_argument("--tokens", type=int, default=4096)
    args.add_argument("--window", type=int, default=512)
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--profile", action="store_true")
    args.add_argument("--no-stepped", action="store_true", help="leave out the time-stepped network")
    args.add_argument("--json")
    opts = args.parse_args()
    rows, result = [], []
    for length in opts.lengths:
        found = models(opts, stepped=length == min(opts.lengths) and not opts.no_stepped)
        runs = steps_of(found, length, opts.tokens)
        alone, flops = product(opts)
        times = harness.interleave(runs | {"product": alone}, opts.rounds, warm=1)
        sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in found.items() if m is not None}
        floor = 6 * sizes["ours"] * opts.tokens / flops * (harness.median(times, "product") or 0.0)
        print(f"T = {length}: floor {1e3 * floor:.0f} ms; {harness.disturbance(times)}", flush=True)
        for name in found:
            row = {
                "length": length, "model": name, "parameters": sizes.get(name), "seconds": harness.median(times, name),
                "over_dense": harness.ratio(times, name, "dense"), "over_ours": harness.ratio(times, name, "ours"),
                "floor": floor,
            }  # fmt: skip
            result.append(row)
            seconds = row["seconds"]
            ms, share = (None, None) if seconds is None else (1e3 * seconds, seconds / floor)
            rows.append([f"{name}, T {length}", sizes.get(name), ms, row["over_dense"], row["over_ours"], share])
        if opts.profile:
            for name in ("ours", "dense"):
                print(f"\n{name}, T {length}\n{profile(runs[name])}\n")
    print(harness.table(["model", "parameters", "ms", "x dense", "x ours", "x floor"], rows))
    harness.emit({"rows": result}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
