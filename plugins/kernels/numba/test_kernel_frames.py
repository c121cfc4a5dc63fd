"""A stream of frames in one call: the definition's bits for any stages, densities and memory; busy frames are left."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import path_of, reasons
from fastsnn_events.count_conv import ConvWindow, event_major
from fastsnn_events.linear import input_major
from fastsnn_integer.frames import (
    FRAME_RUN,
    ConvStage,
    FramePlan,
    LinearStage,
    NeuronStage,
    PoolStage,
    frame_run_naive,
    shape_after,
)
from fastsnn_kernel_numba import frames, numba_runtime
from fastsnn_leaky.scan import LifRule
from fastsnn_modules.operands import OperandError

quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
RULES = [
    LifRule(0.5, 0.0, 1.0, True),
    LifRule(0.9, 0.0, 1.0, True, True),
    LifRule(1.0, -3.0, 4.0),
    LifRule(0.7, 0.0, 200.0, False, True),
]


@st.composite
def runs(draw):
    """Frames, states and a plan."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    shape = draw(st.sampled_from([(1, 1, 1), (3, 5, 4), (4, 1, 9), (6, 8, 8), (2, 3, 7)]))
    stages = []

    def codes(*size):
        return torch.randint(-128, 128, size, generator=generator).to(torch.int8)

    def numbers(n):
        return (0.02 * torch.rand(n, generator=generator) + 0.001) * draw(
            st.sampled_from([1, 1, 1, -1, 0, 1e-38, 1e38])
        )

    if draw(st.booleans()) and min(shape[1:]) > 1:
        stages.append(PoolStage((2, 2), draw(st.sampled_from([(2, 2), (1, 1)]))))
    now = shape_after(stages[0], shape) if stages else shape
    for _ in range(draw(st.integers(1, 3))):
        stages.append(NeuronStage(draw(st.sampled_from(RULES)), 0.8, draw(st.sampled_from([1.0, 0.5]))))
        if draw(st.booleans()) and min(now[1:]) > 1:
            stages.append(
                PoolStage((2, 2), draw(st.sampled_from([(2, 2), (1, 2)])), draw(st.sampled_from([(0, 0), (1, 1)])))
            )
            now = FramePlan(tuple(stages), shape).shapes[-1]
        outputs, bias = draw(st.sampled_from([1, 2, 17, 64])), draw(st.booleans())
        if draw(st.booleans()) and now != (now[0], 1, 1):
            groups = draw(st.sampled_from([1, 1, now[0]]))
            size = (min(2, now[1]), min(3, now[2]))
            pairs = [(draw(st.integers(1, 2)), draw(st.integers(1, 2))) for _ in range(2)]
            window = ConvWindow(pairs[0], (draw(st.integers(0, 2)), 2), pairs[1], groups)
            if min(window.sizes(now[1:], size)) > 0:
                w = event_major(codes(outputs * groups, now[0] // groups, *size))
                stages.append(ConvStage(w, numbers(len(w)), numbers(len(w)) if bias else None, window))
                high, wide = window.sizes(now[1:], size)
                if draw(st.booleans()) and min(high, wide) > 1:
                    strides, edges = (
                        draw(st.sampled_from([(2, 2), (1, 2), (3, 1)])),
                        draw(st.sampled_from([(0, 0), (1, 1)])),
                    )
                    dilation = draw(st.sampled_from([(1, 1), (1, 2)])) if wide > 2 else (1, 1)
                    stages.append(PoolStage((2, 2), strides, edges, dilation))
                now = FramePlan(tuple(stages), shape).shapes[-1]
                continue
        w = input_major(codes(outputs, math.prod(now)))
        stages.append(LinearStage(w, numbers(outputs), numbers(outputs) if bias else None))
        now = (outputs, 1, 1)
    plan = FramePlan(tuple(stages), shape)
    steps = draw(st.integers(0, 3))
    frames_given = draw(st.sampled_from([1, steps]))
    x = torch.randn(frames_given, *shape, generator=generator) * draw(st.sampled_from([0.0, 0.5, 1.0, 9.0]))
    if x.numel() and draw(st.integers(0, 3)) == 0:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = float("nan")
    return x, tuple(torch.randn(n, generator=generator) for n in plan.widths), plan, steps


@quick
@given(case=runs())
def test_frames_are_the_definition(case):
    for array in vars(numba_runtime._kept).values():
        array.view("u1").fill(0xFF)
    kept = [v.clone() for v in (case[0], *case[1])]
    found = frames.run_frames(*case)
    try:
        wanted = frame_run_naive(*case)
    except FastSNNError:  # a count that is no number
        assert found is NotImplemented, "the layers say so"
        return
    if any(v.isnan().any() for v in wanted[1]):
        assert found is NotImplemented
        return
    assert torch.equal(found[0].nan_to_num(7e7), wanted[0].nan_to_num(7e7))
    assert all(torch.equal(a, b) for a, b in zip(found[1], wanted[1], strict=True))
    assert found[2] == wanted[2]
    assert all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(kept, (case[0], *case[1])))


def bits(found):
    """What comes out and states, with the signs of their zeros."""
    return [t.view(torch.int32).tolist() for t in (found[0], *found[1])]


POOLS = [
    PoolStage((2, 2), (2, 2)), PoolStage((2, 2), (1, 1)), PoolStage((3, 2), (2, 3)), PoolStage((1, 3), (1, 2)),
    PoolStage((2, 2), (1, 1), (0, 0), (2, 3)), PoolStage((2, 2), (2, 2), (1, 1)),
]  # fmt: skip
SCALES = {"usual": (0.01, 0.02), "of both signs": (-0.02, 0.02), "none": (0.0, 0.0), "tiny": (1e-45, 1.4e-45)}


@pytest.mark.parametrize("tall", [3, 64])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_a_pool_behind_a_layer_has_the_bits_of_its_numbers(scale, pool, tall):
    """A pool of sums is one of numbers where numbers grow with sums, and elsewhere none is taken."""
    draw = torch.Generator().manual_seed(7)
    most = 1 if scale == "tiny" else 127  # sums around 0, which become zeros of both signs
    weight = event_major(torch.randint(-most, most + 1, (tall, 4, 3, 3), generator=draw).to(torch.int8))
    low, high = SCALES[scale]
    scales = (low + (high - low) * torch.rand(tall, generator=draw)).contiguous()
    for rule, bias in ((RULES[0], None), (RULES[2], torch.randn(tall, generator=draw))):
        layer = ConvStage(weight, scales, bias, ConvWindow(padding=(1, 1)))
        plan = FramePlan((NeuronStage(rule, 0.3), layer, pool, NeuronStage(RULES[2], 0.7)), (4, 8, 9))
        for stages in (plan.stages[:3], plan.stages):
            plan = FramePlan(stages, (4, 8, 9))
            x = torch.randn(3, 4, 8, 9, generator=draw)
            case = x, tuple(torch.randn(n, generator=draw) for n in plan.widths), plan, 3
            assert bits(frames.run_frames(*case)) == bits(frame_run_naive(*case))


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 5, 4)])
@pytest.mark.parametrize("where", range(4))
def test_no_pool_loses_what_is_no_number(shape, where):
    x = torch.randn(1, *shape)
    x[0, 1, where // 2, where % 2] = float("nan")
    plan = FramePlan((PoolStage((2, 2), (2, 2)), plain().stages[0]), shape)
    assert frames.run_frames(x, (torch.zeros(8),), plan, 1) is NotImplemented
    x[0, 1, 0, 0] = x[0, 1, where // 2, where % 2] = 0.0
    assert frames.run_frames(x, (torch.zeros(8),), plan, 1) is not NotImplemented
    layer = ConvStage(event_major(torch.ones(8, 2, 1, 1).to(torch.int8)), torch.ones(8), torch.zeros(8), ConvWindow())
    layer.bias[3] = float("nan")
    plan = FramePlan((plain().stages[0], layer, PoolStage((2, 2), (2, 2), (1, 1)), plain().stages[0]), shape)
    assert frames.run_frames(x, tuple(torch.zeros(n) for n in plan.widths), plan, 1) is NotImplemented


def plain(rule=RULES[0], size=40):
    weight = event_major(torch.ones(64, 8, 3, 3).to(torch.int8))
    stages = (NeuronStage(rule, 1.0), ConvStage(weight, torch.ones(64), None, ConvWindow()))
    return FramePlan(stages, (8, size, size))


def test_busy_frames_are_left_to_the_layers_for_a_while(monkeypatch):
    monkeypatch.setattr(frames, "conv_break_even", lambda *_: 0.3)
    plan, states = plain(), (torch.zeros(8 * 1600),)
    quiet, loud = torch.zeros(1, 8, 40, 40), torch.full((1, 8, 40, 40), 2.0)
    quiet[0, 0] = 2.0
    for _ in range(2):
        found = frames.run_frames(quiet, states, plan, 1)
        assert found[2] == (0.125,)
        assert path_of("frame_run") == "numba: events"
        assert "12.5%" in reasons()["frame_run"]
    assert frames.run_frames(loud, states, plan, 1)[2] == (1.0,)
    assert [frames.run_frames(quiet, states, plan, 1) for _ in range(frames.REST)] == [NotImplemented] * frames.REST
    assert frames.run_frames(quiet, states, plan, 1)[2] == (0.125,)


def test_vectors_with_gaps_are_left_to_the_layers():
    """The kernel reads by addresses."""
    neuron, layer = plain().stages
    for scale, bias in ((torch.ones(128)[::2], None), (torch.ones(64), torch.arange(128.0)[::2])):
        plan = FramePlan((neuron, ConvStage(layer.weight, scale, bias, ConvWindow())), (8, 40, 40))
        assert frames.run_frames(torch.ones(1, 8, 40, 40), (torch.zeros(8 * 1600),), plan, 1) is NotImplemented


def test_what_is_not_taken_and_what_does_not_fit():
    odd, states = torch.zeros(1, 8, 40, 40), (torch.zeros(8 * 1600),)
    odd[0, 1, 2, 3] = float("nan")
    assert frames.run_frames(odd, states, plain(), 1) is NotImplemented
    assert frames.run_frames(torch.zeros(1, 8, 40, 40), states, plain(LifRule(0.5, -1e9, 1e9)), 1) is NotImplemented
    neuron, layer = plain().stages
    bad = (
        ((layer,), "no stage is a neuron"), ((neuron, layer, layer), "no neuron has counted"),
        ((neuron, ConvStage(layer.weight, layer.scale[:3], None, ConvWindow())), "scale"),
        ((neuron, PoolStage((50, 1), (1, 1))), "leaves nothing"),
        ((neuron, LinearStage(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2), None)), "weight"),
        ((NeuronStage(RULES[0], 0.0), layer), "theta of a neuron"), ((NeuronStage(RULES[0], 1.0, "x"), layer), "gain"),
        ((NeuronStage(LifRule(math.nan, 0.0, 1.0, True), 1.0), layer), "beta"),
        ((NeuronStage(LifRule(0.5, 3.0, 2.0), 1.0), layer), "between two finite numbers"),
        ((neuron, PoolStage((2, 2), (0, 1))), "stride of a pool"),
        ((neuron, PoolStage((2, 2), (1, 1), (2, 0))), "padding .* more than half"),
        ((neuron, ConvStage(layer.weight, layer.scale, torch.ones(63), ConvWindow())), "bias"),
        ((neuron, ConvStage(layer.weight, layer.scale, torch.ones(64).double(), ConvWindow())), "bias"),
    )  # fmt: skip
    for stages, says in bad:
        with pytest.raises(OperandError, match=says):
            FramePlan(stages, (8, 40, 40))
    with pytest.raises(OperandError, match="three whole numbers"):
        FramePlan((neuron, layer), (8, 40, 40.0))
    for x, left in ((odd[:, :7], states), (odd.double(), states), (odd, ()), (odd, (states[0][1:],))):
        with pytest.raises(OperandError):
            FRAME_RUN("cpu", x, left, plain(), 1)
