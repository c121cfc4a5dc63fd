"""Leaky integrate-and-fire over time, forward and backward, beside SpikingJelly, snnTorch and Norse.

    python benchmarks/lif_scan.py [--steps 512 --batch 16 --width 1024] [--rounds 9] [--huge-pages] [--json out.json]

Each row runs its own public module on the same numbers, sums the spikes and takes the gradient of its input: ours on
``[B,T,D]`` through the neuron `lif` (tau 2, arctangent), the others on ``[T,B,N]``. Needs ``pip install --no-deps
spikingjelly snntorch norse nir nirtorch`` and what they ask for; one that is missing is skipped, by name. The floor is
four passes over x (read x, write spikes; read x, write its gradient) at the copy bandwidth measured in the same
rounds. ``--huge-pages`` gives every row's tensors huge pages (torch's THP_MEM_ALLOC_ENABLE), not only ours.
Our spikes are compared with the naive twin first: they have to be equal.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

if "--huge-pages" in sys.argv:
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # torch reads it when it starts

import harness
import torch
from torch import Tensor

from fastsnn_core import create, ops


def fastsnn(width: int) -> Callable[[Tensor], Tensor]:
    neuron = create("neuron", "lif", tau=2.0).build(width)
    return lambda x: neuron(x)[0].counts


def spikingjelly() -> Callable[[Tensor], Tensor]:
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=2.0, decay_input=False, v_reset=None, detach_reset=True, step_mode="m", surrogate_function=surrogate.ATan()
    )

    def forward(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return forward


def snntorch() -> Callable[[Tensor], Tensor]:
    import snntorch

    node = snntorch.Leaky(beta=0.5, reset_mechanism="subtract")

    def forward(x: Tensor) -> Tensor:
        membrane, spikes = node.init_leaky(), []
        for step in x:
            out, membrane = node(step, membrane)
            spikes.append(out)
        return torch.stack(spikes)

    return forward


def norse() -> Callable[[Tensor], Tensor]:
    import norse.torch

    node = norse.torch.LIFBoxCell()

    def forward(x: Tensor) -> Tensor:
        state, spikes = None, []
        for step in x:
            out, state = node(step, state)
            spikes.append(out)
        return torch.stack(spikes)

    return forward


def trained(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """One forward and backward pass; the gradient is made afresh every time."""
    x = x.clone().requires_grad_()

    def run() -> None:
        x.grad = None
        forward(x).sum().backward()

    return run


def present(name: str, make: Callable[[], Any], x: Tensor) -> Callable[[], None] | None:
    try:
        return trained(make(), x)
    except ImportError as error:
        print(f"{name}: skipped, not installed ({error})")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--huge-pages", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    theirs = torch.randn(args.steps, args.batch, args.width) * 0.5 + 0.2
    ours = theirs.transpose(0, 1).contiguous()

    run = fastsnn(args.width)
    spikes = run(ours)
    with ops.use("naive"):
        assert torch.equal(spikes, run(ours)), "spikes differ from the naive twin"
    print(f"spikes equal those of the naive twin; {float(spikes.mean()):.3f} spikes per channel and step")

    copy, size = harness.copier()
    rows = {
        "fastsnn": trained(run, ours),
        "spikingjelly": present("spikingjelly", spikingjelly, theirs),
        "snntorch": present("snntorch", snntorch, theirs),
        "norse": present("norse", norse, theirs),
    }
    times = harness.interleave({"copy": copy, **rows}, args.rounds)
    bandwidth = size / harness.median(times, "copy")
    floor = 4 * ours.nbytes / bandwidth
    result: dict[str, Any] = {
        "steps": args.steps, "batch": args.batch, "width": args.width, "huge_pages": args.huge_pages,
        "copy_gb_s": bandwidth / 1e9, "floor_ms": floor * 1e3, "disturbed_rounds": times["disturbed rounds"][0],
    }  # fmt: skip
    for name in rows:
        seconds = harness.median(times, name)
        result[name] = None if seconds is None else {
            "ms": seconds * 1e3, "over_fastsnn": harness.ratio(times, name, "fastsnn"), "over_floor": seconds / floor,
        }  # fmt: skip
    head = ["forward + backward", "ms", "x fastsnn", "x floor"]
    print(harness.table(head, [[k, *(result[k].values() if result[k] else (None,) * 3)] for k in rows]))
    print(f"floor: 4 passes at {bandwidth / 1e9:.1f} GB/s = {floor * 1e3:.2f} ms; {harness.disturbance(times)}")
    harness.emit(result, args.json)


if __name__ == "__main__":
    main()
