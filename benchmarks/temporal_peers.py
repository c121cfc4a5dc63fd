"""One training step of a network over time, here and in each peer, each in a process of its own (see `temporal.py`).

Two networks share their weights with every peer: ``conv``, two convolutions with leaky neurons and pools, and
``recurrent``, a hidden layer whose spikes come back through weights. A process trains as its users do: ours with what
`FastSNN.fit` sets (memory that is freed stays with the process), a peer as it is imported; `keep` sets the same for a
peer, to tell what that alone brings.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
BATCH, BETA, THRESHOLD = 64, 0.5, 1.0
PEERS = ("snntorch", "spikingjelly", "norse")
_kept: dict[str, Any] = {}


def weights_of(net: str) -> list[nn.Module]:
    """The layers that all share."""
    torch.manual_seed(0)
    if net == "conv":
        return [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32 * 49, 10)]
    return [nn.Linear(64, 256), nn.Linear(256, 256, bias=False), nn.Linear(256, 10)]


def inputs_of(net: str, steps: int) -> Tensor:
    """``[64, T, …]``."""
    draw = torch.Generator().manual_seed(1)
    if net == "conv":
        return (torch.rand(BATCH, steps, 1, 28, 28, generator=draw) > 0.7).float()
    return torch.randn(BATCH, steps, 64, generator=draw)


def ours(net: str, parts: list[nn.Module]) -> Run:
    """A `sequential`: ``[B,T,…] -> [B,T,10]``."""
    from fastsnn_core import build
    from fastsnn_core.spec import from_table

    cell = {"kind": "lif" if net == "conv" else "recurrent_lif", "tau": 1 / (1 - BETA), "fixed": True}
    spikes = {"op": "spikes", "neuron": cell}
    if net == "conv":
        pool = {"op": "max_pool", "kernel": [2]}
        first = {"op": "conv2d", "size": 16, "kernel": [3], "padding": [1]}
        layers = [first, spikes, pool, first | {"size": 32}, spikes, pool, {"op": "flatten"}]
    else:
        layers = [{"op": "linear", "size": 256}, spikes]
    table = {"kind": "sequential", "input": [1, 28, 28] if net == "conv" else [64]}
    model: Any = build(
        from_table({"fastsnn": 1, "model": table | {"layers": [*layers, {"op": "linear", "size": 10}]}}).model
    )
    places = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for place, part in zip(places, parts, strict=True):
        place.weight, place.bias = part.weight, part.bias
    return model


def of_snntorch(net: str, parts: list[nn.Module]) -> Run:
    """snnTorch's loop over time; the reset at once, and the arctangent of slope 2, as here.

    Its gradient goes through the reset and ours does not, so gradients are not those; spikes are.
    """
    import snntorch
    from snntorch import surrogate

    how = {"beta": BETA, "threshold": THRESHOLD, "spike_grad": surrogate.atan(alpha=2.0), "reset_delay": False}
    if net == "recurrent":
        cell = snntorch.RLeaky(all_to_all=True, linear_features=256, **how)
        cell.recurrent = parts[1]

        def through(x: Tensor) -> Tensor:
            s, v = cell.reset_mem()
            rows = []
            for t in range(x.shape[1]):
                s, v = cell(parts[0](x[:, t]), s, v)
                rows.append(parts[2](s.to(x.dtype)))  # its spikes are float32 always
            return torch.stack(rows, 1)

        return through
    cells = [snntorch.Leaky(**how), snntorch.Leaky(**how)]

    def run(x: Tensor) -> Tensor:
        states = [cell.reset_mem() for cell in cells]
        rows = []
        for t in range(x.shape[1]):
            z, states[0] = cells[0](parts[0](x[:, t]), states[0])
            z, states[1] = cells[1](parts[1](nn.functional.max_pool2d(z.to(x.dtype), 2)), states[1])
            rows.append(parts[2](nn.functional.max_pool2d(z.to(x.dtype), 2).flatten(1)))
        return torch.stack(rows, 1)

    return run


class _Sum(nn.Module):
    """``[x, s] -> W x + R s``: what SpikingJelly's recurrent container has as one matrix, with our two."""

    def __init__(self, w: nn.Module, r: nn.Module) -> None:
        super().__init__()
        self.w, self.r = w, r

    def forward(self, both: Tensor) -> Tensor:
        """The drive."""
        x, s = both.split([64, 256], -1)
        return self.w(x) + self.r(s)


def of_spikingjelly(net: str, parts: list[nn.Module]) -> Run:
    """SpikingJelly's multi-step mode, soft reset, arctangent."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def cell(mode: str = "m") -> nn.Module:
        return neuron.LIFNode(
            tau=1 / (1 - BETA), decay_input=False, v_threshold=THRESHOLD, v_reset=None, detach_reset=True,
            surrogate_function=surrogate.ATan(alpha=2.0), step_mode=mode,
        )  # fmt: skip

    def over(part: nn.Module) -> nn.Module:
        return layer.SeqToANNContainer(part)

    if net == "recurrent":
        hidden = layer.LinearRecurrentContainer(cell("s"), 64, 256, step_mode="m")
        hidden.rc = _Sum(parts[0], parts[1])
        whole = nn.Sequential(hidden, over(parts[2]))
    else:
        whole = nn.Sequential(
            over(parts[0]), cell(), over(nn.MaxPool2d(2)), over(parts[1]), cell(), over(nn.MaxPool2d(2)),
            over(nn.Flatten()), over(parts[2]),
        )  # fmt: skip

    def run(x: Tensor) -> Tensor:
        functional.reset_net(whole)
        return whole(x.transpose(0, 1).contiguous()).transpose(0, 1)

    return run


def of_norse(net: str, parts: list[nn.Module]) -> Run:
    """Norse's `LIFBoxCell` step by step: it resets to 0 and weighs its input by the leak, so only time is compared."""
    import norse.torch as norse

    def cell() -> nn.Module:
        return norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)))

    cells = [cell(), cell()]

    def run(x: Tensor) -> Tensor:
        states: list[Any] = [None, None]
        rows = []
        s = x.new_zeros(len(x), 256)
        for t in range(x.shape[1]):
            if net == "recurrent":
                s, states[0] = cells[0](parts[0](x[:, t]) + parts[1](s), states[0])
                rows.append(parts[2](s))
                continue
            z, states[0] = cells[0](parts[0](x[:, t]), states[0])
            z, states[1] = cells[1](parts[1](nn.functional.max_pool2d(z, 2)), states[1])
            rows.append(parts[2](nn.functional.max_pool2d(z, 2).flatten(1)))
        return torch.stack(rows, 1)

    return run


def ours_with_reset(net: str, parts: list[nn.Module]) -> Run:
    """`ours` whose reset has a gradient, as snnTorch's has without its delay."""
    from fastsnn_leaky.neurons import Leaky

    model: Any = ours(net, parts)
    for module in model.modules():
        if isinstance(module, Leaky):
            module.attached = True
    run: Run = model
    return run


BUILDERS: dict[str, Callable[[str, list[nn.Module]], Run]] = {
    "fastsnn": ours, "fastsnn attached": ours_with_reset, "snntorch": of_snntorch,
    "spikingjelly": of_spikingjelly, "norse": of_norse,
}  # fmt: skip


def one_step(who: str, net: str, steps: int, keep: bool, double: bool = False) -> dict[str, Any]:
    """Processor seconds of forward and backward, in this process, where the network and its memory stay.

    The first call also says what came out, and the gradients. `double` computes in float64.
    """
    key = f"{who} {net} {steps}"
    fresh = key not in _kept
    if not _kept:
        torch.set_num_threads(1)
        if keep:
            from fastsnn_train.loop.kept_memory import freed_memory_kept

            _kept["memory"] = contextlib.ExitStack()
            _kept["memory"].enter_context(freed_memory_kept())
    if fresh:
        kind = torch.float64 if double else torch.float32
        parts = [part.to(kind) for part in weights_of(net)]
        _kept[key] = parts, BUILDERS[who](net, parts), inputs_of(net, steps).to(kind)
    parts, run, x = _kept[key]
    found: dict[str, Any] = {}
    for _ in range(2 if fresh else 1):
        begin = time.process_time()
        out = run(x)
        nn.functional.cross_entropy(out.mean(1), torch.arange(BATCH) % 10).backward()
        found["seconds"] = time.process_time() - begin
        grads = [p.grad for part in parts for p in part.parameters()]
        for part in parts:
            part.zero_grad(set_to_none=True)
    if fresh:
        found |= {"out": out.detach().numpy(), "grads": [g.numpy() for g in grads]}
    return found
