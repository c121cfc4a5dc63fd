"""The nodes of NIR as modules of one time step: ``(x [B, *in], state) -> (y [B, *out], state)``.

Differential equations become explicit Euler steps of length dt; a synaptic current is updated before the membrane that
reads it. Spikes are strict (v > threshold), then v = v_reset, as NIR 1.0 says:

    LI, LIF      v ← v + dt/τ (v_leak − v + r x)
    CubaLI(F)    i ← i + dt/τ_syn (w_in x − i);  v ← v + dt/τ_mem (v_leak − v + r i)
    I, IF        v ← v + r x          (per step, whatever dt is: what snnTorch, Norse and Sinabs do)
    Delay        y_t = x_{t − n},  n = delay / dt steps
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError

Shape = tuple[int, ...]
CONSTANTS: dict[str, tuple[str, ...]] = {
    "I": ("r",),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    "Threshold": ("threshold",),
    "Scale": ("scale",),
    "Delay": ("delay",),
}
WEIGHTED = ("Linear", "Affine", "Conv1d", "Conv2d")
POOLS = ("AvgPool2d", "SumPool2d")
STATEFUL = ("I", "IF", "LI", "LIF", "CubaLI", "CubaLIF", "Delay")
SPIKING = ("IF", "LIF", "CubaLIF", "Threshold")
KINDS = ("Input", "Pass", *WEIGHTED, *CONSTANTS, *POOLS, "Flatten")
DEFAULTS = {
    "r": 1.0,
    "tau": 0.01,
    "tau_syn": 0.005,
    "tau_mem": 0.01,
    "v_threshold": 0.5,
    "threshold": 0.5,
    "scale": 1.5,
    "w_in": 1.0,
}


def fires(v: Tensor, threshold: Tensor) -> Tensor:
    """1[v > threshold] with the derivative of arctangent (alpha 2); NaN stays NaN."""
    u = v - threshold
    hard = torch.where(u > 0, 1.0, torch.where(u <= 0, 0.0, u)).to(v.dtype)
    soft = torch.atan(math.pi * u) / math.pi
    return hard.detach() + soft - soft.detach() if soft.requires_grad else hard


class Unit(nn.Module):
    """A node: `spec` says which, `constants` are buffers of its shape, weights are parameters."""

    def __init__(self, spec: Any, dt: float, shape_in: Shape) -> None:
        super().__init__()
        self.spec, self.kind, self.dt, self.shape_in = spec, spec.kind, dt, shape_in
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if self.kind in WEIGHTED:
            fan_in = math.prod(spec.shape[1:])
            self.weight = nn.Parameter(torch.randn(spec.shape) / max(1.0, math.sqrt(fan_in)))
            self.bias = nn.Parameter(torch.zeros(spec.shape[0])) if spec.bias else None
        for name in CONSTANTS.get(self.kind, ()):
            self.register_buffer(name, torch.full(spec.shape, DEFAULTS.get(name, 0.0)))

    def extra_repr(self) -> str:
        """``LIF [100]``."""
        return f"{self.kind} {list(self.spec.shape)}"

    @property
    def delays(self) -> Tensor:
        """Whole steps of every channel of a delay."""
        return (self.get_buffer("delay").double() / self.dt).round().long()

    def start(self, x: Tensor) -> Any:
        """The state before the first step, of inputs like `x`."""
        if self.kind == "Delay":
            return x.new_zeros(len(x), int(self.delays.max()) + 1, *self.spec.shape)
        zeros = x.new_zeros(len(x), *self.spec.shape)
        return (zeros, zeros) if self.kind.startswith("Cuba") else zeros

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step."""
        s = self.spec
        if self.kind in ("Input", "Pass"):
            return x, None
        if self.kind in ("Linear", "Affine"):
            return F.linear(x, self.weight, self.bias), None  # type: ignore[arg-type]
        if self.kind in ("Conv1d", "Conv2d"):
            conv = F.conv1d if self.kind == "Conv1d" else F.conv2d
            return conv(x, self.weight, self.bias, s.stride, s.padding, s.dilation, s.groups), None  # type: ignore[arg-type]
        if self.kind in POOLS:
            y = F.avg_pool2d(x, s.kernel, s.stride, s.padding)
            return (y * math.prod(s.kernel) if self.kind == "SumPool2d" else y), None
        if self.kind == "Flatten":
            return x.flatten(*(d + 1 if d >= 0 else d for d in s.dims)), None
        if self.kind == "Scale":
            return x * self.get_buffer("scale"), None
        if self.kind == "Threshold":
            return fires(x, self.get_buffer("threshold")), None
        return self.evolve(x, self.start(x) if state is None else state)

    def evolve(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of a unit with a state."""
        if self.kind == "Delay":
            line = torch.cat([state[:, 1:], x[:, None]], 1)
            back = line.shape[1] - 1 - self.delays
            return line.gather(1, back.expand(len(x), *back.shape)[:, None]).squeeze(1), line
        c = {name: self.get_buffer(name) for name in CONSTANTS[self.kind]}
        current: Tensor | None = None
        v = state
        if self.kind.startswith("Cuba"):
            current, v = state
            current = current + (self.dt / c["tau_syn"]) * (c["w_in"] * x - current)
            x = current
        if self.kind in ("I", "IF"):
            v = v + c["r"] * x
        else:
            v = v + (self.dt / c["tau_mem" if current is not None else "tau"]) * (c["v_leak"] - v + c["r"] * x)
        y = v
        if self.kind in SPIKING:
            y = fires(v, c["v_threshold"])
            v = torch.where(y.detach() > 0.5, c["v_reset"].expand_as(v), v)
        return y, v if current is None else (current, v)


def after(spec: Any, shape: Shape) -> Shape:
    """Shape of one sample behind a node; an error that says what the node takes."""

    def expect(good: bool, what: str) -> None:
        if not good:
            raise FastSNNError(f"node {spec.name!r} ({spec.kind}) takes {what}, but gets {list(shape)}")

    if spec.kind in ("Input", "Pass"):
        return shape
    if spec.kind in ("Linear", "Affine"):
        expect(bool(shape) and shape[-1] == spec.shape[1], f"[…, {spec.shape[1]}]")
        return (*shape[:-1], spec.shape[0])
    if spec.kind in ("Conv1d", "Conv2d"):
        dims = 1 if spec.kind == "Conv1d" else 2
        channels = spec.shape[1] * spec.groups
        expect(len(shape) == dims + 1 and shape[0] == channels, f"[{channels}{', L' if dims == 1 else ', H, W'}]")
        sizes = zip(shape[1:], spec.shape[2:], spec.stride, spec.padding, spec.dilation)
        found = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        expect(all(n > 0 for n in found), "larger inputs than its kernel")
        return (spec.shape[0], *found)
    if spec.kind in POOLS:
        expect(len(shape) == 3, "[C, H, W]")
        found = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[1:], spec.kernel, spec.stride, spec.padding))
        expect(all(n > 0 for n in found), "larger inputs than its kernel")
        return (shape[0], *found)
    if spec.kind == "Flatten":
        first, last = (d if d >= 0 else d + len(shape) for d in spec.dims)
        expect(0 <= first <= last < len(shape), f"at least {max(spec.dims) + 1} dimensions")
        return (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])
    expect(tuple(shape) == tuple(spec.shape) or spec.shape == (), f"{list(spec.shape)}")
    return shape
