"""The fused decoding step of a decoder in integer arithmetic: its plan, and streams that keep a `DecoderState`'s form.

`stepper` describes the network to `fastsnn_core.lowering`; where that is not possible it says why (`Unsupported`).
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core import lowering
from fastsnn_core.lowering import Gate, Layer, Matrix, Mixer, Plan, Spikes, Unsupported
from fastsnn_core.ops import input_major
from fastsnn_events.runtime import Coding
from fastsnn_integer.quantization import QuantEmbedding, QuantLinear


def matrix(layer: Any, name: str) -> Matrix:
    """A projection with INT8 weights and one scale per output."""
    if not isinstance(layer, QuantLinear | QuantEmbedding):
        raise Unsupported(f"{name} has no INT8 weights")
    if layer.scale.shape[-1] != 1:
        raise Unsupported(f"{name} has a scale per group of {layer.group} inputs; only one per output is fused")
    return Matrix(layer.weight, layer.scale[:, 0], getattr(layer, "bias", None))


def spikes(site: Any, name: str) -> Spikes:
    """How a site makes its counts."""
    centre, neuron = site.centre, site.neuron
    if site.blend < 1.0:
        raise Unsupported(f"{name} blends spikes with numbers ({site.blend:g})")
    if neuron is None:
        return Spikes(name, centre=centre)
    kind = type(neuron).__name__
    if is_a(neuron, "fastsnn_neuron_adaptive_threshold.AdaptiveThresholdModule"):
        sparser = neuron.sparser
        if sparser and int(neuron.top):
            raise Unsupported(f"{name}: adaptive_threshold with top = {int(neuron.top)} is not fused")
        bound = 0.0 if neuron.bound == float("inf") else float(neuron.bound)
        return Spikes(name, "mean", float(neuron.k), bound, float(neuron.dead_zone) if sparser else 0.0, centre)
    if is_a(neuron, "fastsnn_neuron_adaptive_max.AdaptiveMaxModule"):
        return Spikes(name, "max", float(neuron.clip), float(neuron.most), 0.0, centre, int(neuron.burst))
    raise Unsupported(f"{name}: the neuron {kind} is not fused")


def is_a(part: Any, path: str) -> bool:
    """Is this exactly that class? One that only has its name, or changes a method of it, computes something else."""
    return f"{type(part).__module__}.{type(part).__qualname__}" == path


def turned(mixer: Any) -> bool:
    """An attention that wants nothing but rotated queries and keys."""
    return is_a(mixer, "fastsnn_attention_sliding_window.WindowMixer") or is_a(
        mixer, "fastsnn_attention_softmax.SoftmaxMixer"
    )


def mixers(mixer: Any, spec: Any, name: str) -> tuple[Mixer, ...]:
    """One attention, or a hybrid's branches."""
    if is_a(mixer, "fastsnn_attention_hybrid.HybridMixer"):
        parts = [
            mixers(branch, part, f"{name}.branches.{i}")
            for i, (branch, part) in enumerate(zip(mixer.branches, spec.branches))
        ]
        if any(len(part) > 1 for part in parts):
            raise Unsupported(f"{name}: a hybrid inside a hybrid is not fused")
        return tuple(part for (part,) in parts)
    if is_a(mixer, "fastsnn_attention_gla.GlaMixer"):
        gate = Gate(
            matrix(mixer.gate_down, f"{name}.gate_down"), matrix(mixer.gate_up, f"{name}.gate_up"),
            mixer.tau,
        )  # fmt: skip
        return (Mixer("relu", gate=gate, norm=mixer.norm.weight, eps=mixer.norm.eps),)
    if is_a(mixer, "fastsnn_attention_linear.LinearMixer"):
        if mixer.decay:
            raise Unsupported(f"{name}: linear attention with decay = {mixer.decay:g} is not fused")
        return (Mixer(mixer.feature, eps=mixer.eps),)
    if turned(mixer):
        if mixer.kv_bits:
            raise Unsupported(f"{name}: a cache in {mixer.kv_bits} bits is not fused")
        return (Mixer(window=getattr(mixer, "window", 0), rotary=True),)
    raise Unsupported(f"{name}: the attention {spec.name!r} is not fused")


def layer(block: Any, spec: Any, name: str) -> Layer:
    """One residual block."""
    found = body(block, name)
    return attrs.evolve(found, mixers=mixers(block.attention.mixer, spec, f"{name}.attention.mixer"))


def body(block: Any, name: str) -> Layer:
    """A block without what mixes its tokens."""
    a, f = block.attention, block.feedforward
    for key in ("q", "k", "v"):
        site = getattr(a, f"{key}_site")
        if site.neuron is not None or site.centre is not None:
            raise Unsupported(f"{name}.attention.{key}_site: spikes on queries, keys or values are not fused")
    if not is_a(f, "fastsnn_feedforward_pulse.PulseLayer"):
        raise Unsupported(f"{name}.feedforward: {type(f).__name__} is not fused")
    at = f"{name}.attention"
    return Layer(
        norm=block.attention_norm.weight,
        spikes=spikes(a.inner, f"{at}.inner"),
        q=matrix(a.q, f"{at}.q"),
        k=matrix(a.k, f"{at}.k"),
        v=matrix(a.v, f"{at}.v"),
        mixers=(),
        mixed=spikes(a.outer, f"{at}.outer"),
        out=matrix(a.out, f"{at}.out"),
        norm2=block.feedforward_norm.weight,
        spikes2=spikes(f.inner, f"{name}.feedforward.inner"),
        up=matrix(f.up, f"{name}.feedforward.up"),
        gate=None if f.gate is None else matrix(f.gate, f"{name}.feedforward.gate"),
        activation=f.activation,
        hidden=spikes(f.hidden, f"{name}.feedforward.hidden"),
        down=matrix(f.down, f"{name}.feedforward.down"),
        q_norm=None if a.q_norm is None else a.q_norm.weight,
        k_norm=None if a.k_norm is None else a.k_norm.weight,
    )


def plan(model: Any) -> Plan:
    """The network as numbers and tensors; `Unsupported` says what cannot be fused."""
    spec = model.spec
    if spec.quant is None:
        raise Unsupported("float weights: only W8A models are fused; fastsnn export BUNDLE --to w8a OUT.snn")
    if model.embed.weight.device.type != "cpu":
        raise Unsupported(f"the model is on {model.embed.weight.device}; the fused step runs on the CPU")
    if model.embed_site.neuron is not None or model.embed_site.centre is not None:
        raise Unsupported("embed_site: spikes after the embedding are not fused")
    coded = isinstance(model.embed, QuantEmbedding)
    if coded and model.embed.scale.shape[-1] != 1:
        raise Unsupported(f"embed has a scale per group of {model.embed.group} inputs; only one per row is fused")

    def angles(places: int) -> tuple[Tensor, Tensor]:
        model.angles(torch.tensor([[places - 1]]))
        return model.table

    kinds = [spec.attention[i % len(spec.attention)] for i in range(spec.n_layers)]
    return Plan(
        width=spec.d_model,
        n_heads=spec.dims.n_heads,
        n_kv_heads=spec.dims.n_kv_heads,
        head_dim=spec.dims.head_dim,
        eps=spec.norm_eps,
        table=model.embed.weight,
        table_scale=model.embed.scale if coded else None,
        layers=tuple(layer(b, kind, f"layers.{i}") for i, (b, kind) in enumerate(zip(model.layers, kinds))),
        norm=model.norm.weight,
        spikes=spikes(model.head_site, "head_site"),
        head=matrix(model.embed if model.head is None else model.head, "the head"),
        angles=angles,
    )


class FastStream:
    """A stream in the fused step: ``step(token) -> logits [vocab]``; `state` gives it back in the model's form."""

    def __init__(self, model: Any, made: Any, state: Any) -> None:
        self.model, self.like = model, state
        pairs = [[pair(s) for s in branches(model, i, state)] for i in range(len(state.layers))]
        self.stream = made.start(int(state.position), pairs)

    def step(self, token: int) -> Tensor:
        """Logits after one more token; counts that are not finite are a ValueError, and the stream's end."""
        return self.stream.step(token)

    @property
    def nbytes(self) -> int:
        """Memory of the state."""
        return self.stream.nbytes

    def state(self) -> Any:
        """The `DecoderState` that the model itself goes on with."""
        layers = []
        for i, (old, pairs) in enumerate(zip(self.like.layers, self.stream.states())):
            found = tuple(unpair(s, *both) for s, both in zip(branches(self.model, i, self.like), pairs))
            mixer = found if isinstance(old.attention.mixer, tuple) and len(found) > 1 else found[0]
            layers.append(old._replace(attention=old.attention._replace(mixer=mixer)))
        return self.like._replace(position=torch.tensor([self.stream.position]), layers=tuple(layers))


def branches(model: Any, i: int, state: Any) -> tuple[Any, ...]:
    """The states of a layer's attention, one per branch."""
    mixed = state.layers[i].attention.mixer
    return mixed if model.spec.attention[i % len(model.spec.attention)].name == "hybrid" else (mixed,)


def pair(state: Any) -> tuple[Tensor, Tensor]:
    """A mixer's state of one stream as kernels take it: running sums, or the keys and values of this document."""
    if hasattr(state, "kv_acc"):
        return state.kv_acc[0], state.z_acc[0]
    return state.k[0][state.valid[0]], state.v[0][state.valid[0]]


def unpair(like: Any, first: Tensor, second: Tensor) -> Any:
    """The inverse of `pair`, in the form of `like`."""
    if hasattr(like, "kv_acc"):
        return type(like)(first[None], second[None])
    past = like.k.shape[1] if type(like).__name__ == "WindowState" else len(first)
    first, second = first[max(0, len(first) - past) :], second[max(0, len(second) - past) :]
    blank = past - len(first)
    k, v = (torch.cat([x.new_zeros(blank, *x.shape[1:]), x])[None] for x in (first, second))
    return like._replace(k=k, v=v, valid=(torch.arange(past) >= blank)[None])


def watched(model: nn.Module) -> None:
    """Refuse what a fused step would leave out: hooks that watch layers, trains that must fit, blends."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"{name or 'the model'} has a hook, which a fused step would pass by")
        if isinstance(module, Coding) and module.active and module.strict:
            raise Unsupported(f"{name}: strict coding checks every count against its steps")
    if model.training:
        raise Unsupported("the model is in training mode")


def stamp(model: nn.Module, plan: Plan) -> tuple[Any, ...]:
    """Changes when any weight, constant or number of the plan does."""
    tensors = (*model.parameters(), *model.buffers())
    versions = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    return versions, numbers(plan), torch.get_num_threads()


def numbers(part: Any) -> Any:
    """The numbers and names in a plan, without its tensors."""
    if isinstance(part, tuple):
        return tuple(numbers(item) for item in part)
    if attrs.has(type(part)):
        return tuple(numbers(getattr(part, field.name)) for field in attrs.fields(type(part)))
    return part if isinstance(part, int | float | str) else None


def join(model: Any) -> None:
    """Weights that read the same spikes lie side by side, so that one event reads one long row: q, k, v; up, gate.

    The layers keep views of the whole, so there is no second copy.
    """
    for block in model.layers:
        a, f = block.attention, block.feedforward
        for layers in ([a.q, a.k, a.v], [f.up] if f.gate is None else [f.up, f.gate]):
            tall, first = sum(len(layer.weight) for layer in layers), layers[0].weight
            shared = {layer.weight.untyped_storage().data_ptr() for layer in layers}
            if first.stride() == (1, tall) and len(shared) == 1:
                continue
            with torch.inference_mode(False):  # what is made in inference mode could not be loaded into again
                whole = input_major(torch.cat([layer.weight for layer in layers]))
            begin = 0
            for layer in layers:
                layer.weight = whole[begin : begin + len(layer.weight)]
                begin += len(layer.weight)


def start(model: Any, state: Any, wait: bool = True) -> tuple[str, FastStream]:
    """``(kernel set, stream)`` that goes on from the state of one stream; `Unsupported` says why not."""
    watched(model)
    if state is None or len(state.position) != 1:
        raise Unsupported("a fused stream begins from the state of one stream")
    if lowering.DECODE_STEP.pick("cpu")[0] == "naive":
        lowering.refuse(None)
    found = plan(model)  # says what cannot be fused before anything is moved
    if model.fused is None or model.fused[0] != stamp(model, found):
        join(model)
        found = plan(model)
        model.fused = stamp(model, found), lowering.stepper(found, wait)
    kernel, made = model.fused[1]
    return kernel, FastStream(model, made, state)
