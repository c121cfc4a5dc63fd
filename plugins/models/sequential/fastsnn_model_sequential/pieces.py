"""Pieces of a network that run as one: from a leaky neuron on, through INT8 layers, for one stream without gradients.

A piece begins at a ``spikes`` layer whose neuron is the leaky one of `fastsnn_leaky` with one threshold, or at a max
pool in front of one (a ``repeat`` may stand between: the pool is taken once), and goes on through INT8 layers, max
pools, flattenings, other such neurons and what does nothing in evaluation, up to the last numbers.
`fastsnn_integer.frames` has its equation; the bits are those of the layers one by one, which run wherever a condition
fails: in training, with gradients, more than one stream, resets, hooks that watch, a strict coding.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from attrs import define
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastsnn_conversion.spike_layers import Dropout, Flatten, MaxPool
from fastsnn_conversion.time_folding import TimeFoldedPass, TimeFoldedSite, running_pass
from fastsnn_integer.frames import (
    FRAME_RUN,
    ConvStage,
    FramePlan,
    LinearStage,
    NeuronStage,
    PoolStage,
    Shape,
    Stage,
)
from fastsnn_integer.quant_conv import QuantConv
from fastsnn_integer.quantization import QuantLinear
from fastsnn_leaky.neurons import Leaky
from fastsnn_leaky.scan import LifRule
from fastsnn_model_sequential.modules import TimeBegins
from fastsnn_modules.operands import OperandError

NOTHING = (nn.Identity, Dropout, Flatten)  # in evaluation, but for the shape


@define(eq=False)
class Piece:
    """Layers from one place of a network up to another, their plan, and what it was made of.

    `attributes` are the dictionaries of all its modules: a step of a small network takes as long as a few dozen lookups
    through ``nn.Module`` would.
    """

    end: int
    sites: list[TimeFoldedSite]
    attributes: list[dict[str, Any]]
    plan: FramePlan
    shape: tuple[int, ...]
    begins: TimeBegins | None  # where a sample without time is shown for its steps


_pieces: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Piece | None]]] = WeakKeyDictionary()


def open_for_pieces(network: Any) -> TimeFoldedPass | None:
    """The running pass, where pieces may run in it: one stream, in evaluation, no gradients, nobody traces."""
    stream = running_pass()
    if stream is None or stream.batch != 1 or stream.reset is not None or network.training or torch.is_grad_enabled():
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return None
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return None
    return stream if FRAME_RUN.pick("cpu")[0] != "naive" else None


def run_piece(network: Any, layers: tuple[Any, ...], at: int, x: Any, stream: TimeFoldedPass) -> Any:
    """``(what comes out, the layer behind)`` of the piece that begins with layer `at`; None where none does."""
    if type(x) is not Tensor or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    piece = piece_at(network, layers, at)
    if piece is None or (piece.begins is not None and stream.pooled) or any(map(busy, piece.attributes)):
        return None
    states = []
    for site, width in zip(piece.sites, piece.plan.widths):
        own = site.__dict__
        coding: Any = own["coding"] if "coding" in own else own["_modules"]["coding"]
        if own["blend"] != 1.0:
            return None
        if coding is not None and (coding.strict or coding.recording is not None or has_forward_hooks(coding)):
            return None
        old: Any = stream.old.get(site.label)
        if old is None:
            old = x.new_zeros(1, width)
        elif type(old) is not Tensor or old.shape != (1, width) or old.dtype != x.dtype or old.device != x.device:
            return None  # the neuron says what is wrong
        states.append(old.reshape(width))
    steps = len(x) if piece.begins is None or stream.timed else piece.begins.steps
    found = FRAME_RUN.pick("cpu")[1](x.reshape(len(x), *piece.plan.shape), tuple(states), piece.plan, steps)
    if found is NotImplemented:
        return None
    if piece.begins is not None and not stream.timed:
        stream.begin(steps)
    y, left, _ = found
    for site, v in zip(piece.sites, left):
        stream.new[site.label] = v.unsqueeze(0)
    return y.reshape(steps, *piece.shape), piece.end


def busy(own: dict[str, Any]) -> bool:
    """Does somebody watch the module with these attributes, or train it, or has it a forward of its own?"""
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["training"] or "forward" in own)


def has_forward_hooks(module: nn.Module) -> bool:
    """Does somebody watch it?"""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def piece_at(network: Any, layers: tuple[Any, ...], at: int) -> Piece | None:
    """The piece that begins with this layer, made anew where any of its modules or constants is another one."""
    if type(layers[at]) not in (TimeFoldedSite, MaxPool):
        return None
    known = _pieces.get(network)
    if known is None:
        known = _pieces[network] = {}
    found = known.get(at)
    if found is None or found[0] != constants_of(layers, at, found[1].end if found[1] else len(layers)):
        piece = made_piece(network, at)
        known[at] = found = constants_of(layers, at, piece.end if piece else len(layers)), piece
    return found[1]


def constants_of(layers: Any, at: int, end: int) -> list[Any]:
    """What a plan holds of these layers: modules by identity, tensors by place, numbers by value."""
    found: list[Any] = []
    for layer in layers[at:end]:
        kind = type(layer)
        if kind in NOTHING:
            continue
        found.append(layer)
        own = layer.__dict__
        if kind is TimeFoldedSite:
            neuron = own["_modules"].get("neuron")
            found.append(neuron)
            if type(neuron) is Leaky:
                found += numbers_of(neuron.__dict__)
        elif isinstance(layer, QuantConv | QuantLinear):
            held, bias = own["_buffers"], own["_parameters"].get("bias")
            found += (held["weight"].data_ptr(), held["scale"].data_ptr(), None if bias is None else bias.data_ptr())
    return found


def numbers_of(own: dict[str, Any]) -> tuple[Any, ...]:
    """Of a leaky neuron, by its attributes."""
    theta = own["_buffers"].get("theta")
    theta = own["_parameters"]["theta"] if theta is None else theta
    one = theta.item() if theta.numel() == 1 else 0.0
    return one, own["beta"], own["lo"], own["hi"], own["heaviside"], own["hard"], own["gain"]


def made_piece(network: Any, at: int) -> Piece | None:
    """The longest piece from a layer on, or None where none of its layers would gain."""
    layers, shapes = network.layers, network.spec.shapes()
    first = as_image(shapes[at])
    if first is None:
        return None
    stages: list[Stage] = []
    sites: list[TimeFoldedSite] = []
    end, kept, spikes = at, 0, False
    begins: TimeBegins | None = None
    for i in range(at, len(layers)):
        layer: Any = layers[i]
        if type(layer) is TimeBegins and layer.coder is None and not sites and begins is None:
            begins = layer
            continue
        stage = None if type(layer) in NOTHING else stage_of(layer, shapes[i], spikes)
        if stage is None and type(layer) not in NOTHING:
            break
        if isinstance(stage, NeuronStage):
            sites.append(layer)
            spikes = True
        elif isinstance(stage, ConvStage | LinearStage):
            spikes = False
        stages += [] if stage is None else [stage]
        if stage is not None and not spikes:
            end, kept = i + 1, len(stages)
    if not any(isinstance(stage, ConvStage | LinearStage) for stage in stages[:kept]):
        return None
    try:
        plan = FramePlan(tuple(stages[:kept]), first)
    except OperandError:  # sizes that only the layers' own errors explain
        return None
    inside = list(layers[at:end])
    watched = [*inside, *(s.neuron for s in inside if isinstance(s, TimeFoldedSite))]
    return Piece(end, sites[: len(plan.widths)], [vars(m) for m in watched], plan, shapes[end], begins)


def stage_of(layer: Any, shape: tuple[int, ...], spikes: bool) -> Stage | None:
    """The stage that a layer is, where it is one."""
    kind = type(layer)
    if kind is TimeFoldedSite:
        n = layer.neuron
        if type(n) is not Leaky or layer.centre is not None or layer.channels != len(shape) or n.theta.numel() != 1:
            return None
        stage = NeuronStage(LifRule(n.beta, n.lo, n.hi, n.heaviside, n.hard), float(n.theta), n.gain)
        return stage if math.isfinite(stage.largest) and not spikes else None
    if kind is MaxPool and layer.dims == len(shape) - 1 and layer.dims < 3:
        sizes = (layer.kernel, layer.stride or layer.kernel, layer.padding, layer.dilation)
        return PoolStage(*(as_pair(size, layer.dims, n == 2) for n, size in enumerate(sizes)))
    if not spikes:
        return None
    if kind is QuantConv:
        return ConvStage(layer.weight, layer.scale[:, 0], layer.bias, layer.window)
    if kind is QuantLinear and not layer.group and len(shape) == 1:
        return LinearStage(layer.weight, layer.scale[:, 0], layer.bias)
    return None


def as_pair(size: Any, dims: int, zero: bool) -> tuple[int, int]:
    """A size of a window in two dimensions; those of a signal stand behind a 1 (a padding behind a 0)."""
    sizes = (size,) * dims if isinstance(size, int) else tuple(size) * (dims if len(size) == 1 else 1)
    found = (*((0,) if zero else (1,)) * (2 - dims), *sizes)
    return found[0], found[1]


def as_image(shape: tuple[int, ...]) -> Shape | None:
    """``[C, H, W]`` of a sample of up to three dimensions."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return (shape[0], 1, 1) if len(shape) == 1 else None
