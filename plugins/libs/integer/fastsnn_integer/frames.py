"""One stream of frames through neurons and INT8 layers, as plain data that a kernel runs in one piece: `frame_run`.

    stage       per step, after what the stage before gave                        numbers of one step
    neuron      u = β v + (gain · x) / θ; c = count(u); v = u - c, or the reset     x -> counts, the same shape
    conv        y = float(Σ c w) · s_o · V (+ b_o), as `fastsnn_integer.quant_conv` counts -> [O, H', W']
    linear      the same over all numbers in the order [C, H, W]                    counts -> [O, 1, 1]
    pool        the maximum of each window                                          the same channels

V is the θ of the neuron before. Shapes: x ``[T, C, H, W]`` float32, or one frame for all T steps; a state v ``[C·H·W]``
per neuron, in order; signals and vectors have sizes of 1. The twin runs the operators of the layers; sums are exact, so
a kernel has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core.ops.dispatch import Operator
from fastsnn_events.count_conv import ConvWindow, check_count_conv, count_conv_naive
from fastsnn_events.linear import count_linear_naive
from fastsnn_leaky.scan import LifRule, count_and_reset
from fastsnn_modules.operands import OperandError, Operands, OperandTypeError, imported_later, shown

Shape = tuple[int, int, int]


@frozen(eq=False)
class NeuronStage:
    """A leaky neuron of one threshold θ; its counts lie between `LifRule.lo` and `LifRule.hi`, or are 0 and 1."""

    rule: LifRule
    theta: float
    gain: float = 1.0

    @property
    def largest(self) -> float:
        """Of a count's magnitude."""
        return 1.0 if self.rule.heaviside else max(abs(self.rule.lo), abs(self.rule.hi))


@frozen(eq=False)
class ConvStage:
    """INT8 weights ``[O, I, K, L]``, event-major; scale and bias float32 ``[O]``."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    window: ConvWindow


@frozen(eq=False)
class LinearStage:
    """INT8 weights ``[O, D]``, input-major; scale and bias float32 ``[O]``."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


@frozen(eq=False)
class PoolStage:
    """The maximum of windows; what lies beyond the edge is smaller than any number."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


_LINEAR = Operands("frame_run", "counts [N,D] number", "weight [O,D] int8", "scale [O] float32")
_OUTPUTS = Operands("frame_run", "scale [O] float32", "bias [O] float32")
Stage = NeuronStage | ConvStage | LinearStage | PoolStage


def shape_after(stage: Stage, shape: Shape) -> Shape:
    """``[C, H, W]`` behind a stage."""
    if isinstance(stage, ConvStage):
        weight = stage.weight
        return len(weight), *stage.window.sizes(shape[1:], (weight.shape[2], weight.shape[3]))
    if isinstance(stage, LinearStage):
        return len(stage.weight), 1, 1
    if isinstance(stage, PoolStage):
        return shape[0], *ConvWindow(stage.stride, stage.padding, stage.dilation).sizes(shape[1:], stage.kernel)
    return shape


def check_neuron_stage(stage: NeuronStage) -> None:
    """Its numbers: finite, θ above 0, a range of counts that is one; 0 and 1 need none."""
    rule = stage.rule
    for name, value in (("beta", rule.beta), ("theta", stage.theta), ("gain", stage.gain)):
        if not isinstance(value, int | float) or not math.isfinite(value) or (name == "theta" and value <= 0):
            raise OperandError(f"frame_run: {name} of a neuron is a finite number, theta above 0, got {value!r}")
    if not rule.heaviside:
        ends = rule.lo, rule.hi
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in ends) or ends[0] > ends[1]:
            raise OperandError(f"frame_run: counts of a neuron lie between two finite numbers, got {ends!r}")


def check_pool_stage(stage: PoolStage) -> None:
    """Whole numbers, and a padding of half a window at most."""
    for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        pair: Any = getattr(stage, name)
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(type(k) is int and k >= least for k in pair):
            raise OperandError(f"frame_run: {name} of a pool is two whole numbers from {least} on, got {pair!r}")
    if any(2 * a > k for a, k in zip(stage.padding, stage.kernel)):
        raise OperandError(f"frame_run: padding {stage.padding} is more than half of a window of {stage.kernel}")


def check_layer_stage(stage: ConvStage | LinearStage, shape: Shape) -> None:
    """Weights, scale and bias that fit what comes in, ``[C, H, W]``."""
    _OUTPUTS(stage.scale, stage.scale if stage.bias is None else stage.bias)
    none = stage.scale.new_zeros(1)
    if isinstance(stage, ConvStage):
        check_count_conv(none.expand(1, *shape), stage.weight, stage.scale, none, stage.window)
    else:
        _LINEAR(none.expand(1, math.prod(shape)), stage.weight, stage.scale)


@frozen(eq=False)
class FramePlan:
    """The stages of one piece of a network, and the shape ``[C, H, W]`` that comes in; they are known to fit.

    Errors (OperandError): a layer that reads what no neuron has counted, weights or windows that do not fit.
    """

    stages: tuple[Stage, ...]
    shape: Shape
    shapes: tuple[Shape, ...] = field(init=False)
    widths: tuple[int, ...] = field(init=False)
    device: torch.device = field(init=False)

    def __attrs_post_init__(self) -> None:
        if len(self.shape) != 3 or not all(type(n) is int and n > 0 for n in self.shape):
            raise OperandError(f"frame_run: shape is three whole numbers [C, H, W], got {self.shape!r}")
        if not any(isinstance(stage, NeuronStage) for stage in self.stages):
            raise OperandError("frame_run: no stage is a neuron")
        found, widths, spikes = [self.shape], [], False
        for stage in self.stages:
            if isinstance(stage, NeuronStage):
                check_neuron_stage(stage)
                widths.append(math.prod(found[-1]))
                spikes = True
            elif isinstance(stage, PoolStage):
                check_pool_stage(stage)
            else:
                if not spikes:
                    raise OperandError(f"frame_run: a {type(stage).__name__} reads numbers that no neuron has counted")
                check_layer_stage(stage, found[-1])
                spikes = False
            found.append(shape_after(stage, found[-1]))
            if min(found[-1]) < 1:
                raise OperandError(f"frame_run: a {type(stage).__name__} leaves nothing: {list(found[-1])}")
        devices = [s.weight.device for s in self.stages if isinstance(s, ConvStage | LinearStage)]
        object.__setattr__(self, "device", devices[0] if devices else torch.device("cpu"))
        object.__setattr__(self, "shapes", tuple(found))
        object.__setattr__(self, "widths", tuple(widths))


def frame_run_naive(
    x: Tensor, states: tuple[Tensor, ...], plan: FramePlan, steps: int
) -> tuple[Tensor, tuple[Tensor, ...], tuple[float, ...]]:
    """The definition: ``(y [T, O, H', W'], states behind the last step, share of active inputs of each layer)``."""
    left, rows, theta = list(states), x if len(x) == steps else x.expand(steps, *x.shape[1:]), torch.ones(1)
    shares: list[float] = []
    neuron = 0
    for stage in plan.stages:
        if isinstance(stage, NeuronStage):
            v, given, theta = left[neuron], rows, torch.tensor([stage.theta])
            counts = torch.empty_like(rows)
            for t in range(len(rows)):
                z = given[t].flatten() if stage.gain == 1.0 else stage.gain * given[t].flatten()
                c, v = count_and_reset(stage.rule.beta * v + z / theta, stage.rule)
                counts[t] = c.view(rows.shape[1:])
            left[neuron], rows, neuron = v, counts, neuron + 1
        elif isinstance(stage, PoolStage):
            rows = F.max_pool2d(rows, stage.kernel, stage.stride, stage.padding, stage.dilation)
        else:
            shares.append(int(torch.count_nonzero(rows)) / max(1, rows.numel()))
            if isinstance(stage, ConvStage):
                rows = count_conv_naive(rows, stage.weight, stage.scale, theta, stage.window)
            else:
                sums = count_linear_naive(rows.flatten(1), stage.weight).to(torch.float32)
                rows = (sums * stage.scale * theta)[:, :, None, None]
            rows = rows if stage.bias is None else rows + stage.bias[:, None, None]
    return rows, tuple(left), tuple(shares)


def check_frame_run(x: Tensor, states: tuple[Tensor, ...], plan: FramePlan, steps: int) -> None:
    """The operands of `frame_run_naive`; what is inside of the plan, it has looked at itself."""
    if not isinstance(plan, FramePlan):
        raise OperandTypeError(f"frame_run: plan must be a FramePlan, got {type(plan).__name__}")
    for name, t in (("x", x), *((f"states[{i}]", v) for i, v in enumerate(states))):
        if not isinstance(t, Tensor) or t.dtype != torch.float32 or t.layout is not torch.strided or t.is_neg():
            raise OperandTypeError(f"frame_run: {name} must be an ordinary float32 tensor, got {shown(t)}")
        if t.device != plan.device:
            raise OperandTypeError(f"frame_run: {name} is on {t.device} and the weights on {plan.device}; move one")
    if tuple(x.shape[1:]) != plan.shape:
        raise OperandError(f"frame_run: x must be [T, {', '.join(map(str, plan.shape))}], got {list(x.shape)}")
    if type(steps) is not int or steps < 0 or len(x) not in (1, steps):
        raise OperandError(
            f"frame_run: {steps!r} steps of {len(x)} frames; it takes one frame for each, or one for all"
        )
    if tuple(tuple(v.shape) for v in states) != tuple((n,) for n in plan.widths):
        raise OperandError(
            f"frame_run: states must have {list(plan.widths)} numbers, got {[v.numel() for v in states]}"
        )


def frame_run_samples() -> Iterator[tuple[Any, ...]]:
    """Small networks at several densities: strides, groups, pools on numbers and on counts, biases, resets."""
    from fastsnn_events.count_conv import event_major
    from fastsnn_events.linear import input_major

    draw = torch.Generator().manual_seed(0)

    def codes(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=draw).to(torch.int8)

    def numbers(n: int) -> Tensor:
        return 0.01 * torch.rand(n, generator=draw) + 0.001

    for height in (0.0, 0.6, 1.4, 4.0):
        binary = NeuronStage(LifRule(0.5, 0.0, 1.0, True), 0.8)
        signed = NeuronStage(LifRule(0.9, -3.0, 4.0, False, True), 0.7, 0.5)
        stages: tuple[Stage, ...] = (
            binary, ConvStage(event_major(codes(7, 3, 3, 3)), numbers(7), numbers(7), ConvWindow(padding=(1, 1))),
            PoolStage((2, 2), (2, 2)), signed, PoolStage((3, 1), (1, 2), (1, 0)),
            ConvStage(event_major(codes(14, 1, 2, 2)), numbers(14), None, ConvWindow((2, 1), (1, 2), (1, 2), 7)),
            binary,
        )  # fmt: skip
        width = math.prod(FramePlan(stages, (3, 9, 7)).shapes[-1])
        stages += (LinearStage(input_major(codes(5, width)), numbers(5), numbers(5)),)
        x = torch.randn(3, 3, 9, 7, generator=draw) * height
        for steps, many in ((3, len(stages)), (1, 1), (3, 5), (0, 2)):
            plan = FramePlan(stages[:many], (3, 9, 7))
            yield x[:steps], tuple(torch.randn(n, generator=draw) for n in plan.widths), plan, steps
        plan = FramePlan((PoolStage((2, 2), (2, 2)), *stages[:2]), (3, 18, 15))
        frame = torch.randn(1, 3, 18, 15, generator=draw) * height
        yield frame, tuple(torch.randn(n, generator=draw) for n in plan.widths), plan, 3


FRAME_RUN = Operator(
    "frame_run", frame_run_naive, plain=True, check=check_frame_run,
    samples=imported_later("fastsnn_integer.frames.frame_run_samples"),
)  # fmt: skip
