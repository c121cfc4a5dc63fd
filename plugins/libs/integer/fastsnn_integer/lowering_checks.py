"""What ``lower()`` promises of neurons, attentions and feed-forward layers: the form computes what the module does.

Each check builds a module in integer arithmetic, lowers it, and compares it with the form evaluated in plain torch and,
where one is installed, by a kernel, bit for bit. Then every number and tensor that the module holds is changed in turn:
where its output follows and its form does not, `lower()` forgets a constant. A module without a form is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import SpikeSite, SpikeTensor
from fastsnn_core.heads import Dims, Heads
from fastsnn_core.lowering import SiteForm, SpikeRule, Unsupported, lower
from fastsnn_integer import fused_row_ops, quantization, reference
from fastsnn_integer.decode_step import fingerprint
from fastsnn_integer.samples import normal
from fastsnn_kit.checks import label, plain_site
from fastsnn_kit.kernels import check_identical

WIDTH, HIDDEN, TOKENS, BEFORE = 24, 41, 6, 2
DIMS = Dims(WIDTH, 4, 2, 6)
LEFT_OUT = {"training", "batch_invariant"}  # flags that say how, not what


class Mean(nn.Module):
    """round(x / V), V = mean|x| / 2: the plainest neuron with a rule, for the sites of layers under test."""

    batch_invariant = True

    def lower(self) -> SpikeRule:
        """Its rule."""
        return SpikeRule("mean_abs", divisor=2.0)

    def forward(self, x: Tensor, state: Any = None, reset: Any = None) -> tuple[SpikeTensor, None]:
        """Counts."""
        counts, v = reference.spike_counts(self.lower(), x.flatten(0, 1))
        return SpikeTensor(counts.view(x.shape), v.view(*x.shape[:2], 1)), None


def in_integers(module: nn.Module) -> Any:
    """The module in integer arithmetic, in evaluation mode, with numbers in its vectors."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    holder = nn.Sequential(module).eval().float()
    quantization.apply(holder, quantization.Quant())
    return holder[0]


def rows() -> Tensor:
    """Rows ``[8, D]``: ordinary, with outliers, small, large, equal, of zeros."""
    x = normal(1, 8, WIDTH)
    x[1, ::7] *= 1e3
    x[2], x[3], x[4], x[5] = x[2] * 1e-3, x[3] * 1e3, 1.0, 0.0
    return x


@torch.no_grad()
def check_neuron(component: Any, data: Any = None) -> None:
    """Counts and V of the rule, of the kernel in use, and of ``threshold(x)``, against the neuron's own."""
    module, who, x = in_integers(component.build(WIDTH)), label(component), rows()
    rule = form_of(module)
    if rule is None:
        return
    assert isinstance(rule, SpikeRule), f"{who}: lower() returned {type(rule).__name__}, not a SpikeRule"

    def run() -> tuple[Tensor, Tensor]:
        spikes, _ = module(x[None])
        return spikes.counts[0], spikes.scale.expand(1, len(x), 1)[0]

    wanted = run()
    check_identical(reference.spike_counts(rule, x), wanted, f"{who}: the rule of lower()")
    threshold: Any = getattr(module, "threshold", None)
    assert callable(threshold), f"{who} has lower() and no threshold(x), which calibration asks for V"
    check_identical(threshold(x), wanted[1], f"{who}: threshold(x)")
    if fused_row_ops.RESIDUAL.pick("cpu")[0] != "naive":
        made = fused_row_ops.residual(x.clone(), None, None, SiteForm(rule, None, module))
        check_identical((made.counts.float(), made.v), wanted, f"{who}: the row kernel")
    check_constants(module, run, who)


@torch.no_grad()
def check_attention(component: Any, data: Any = None) -> None:
    """A stream token by token: outputs and states of the forms against the mixer's own."""
    mixer, who = in_integers(component.build_with_sites(DIMS, plain_site)), label(component)
    forms = form_of(mixer)
    if forms is None:
        return
    assert isinstance(forms, tuple), f"{who}: lower() returned {type(forms).__name__}, not a tuple of forms"
    heads = [token(t) for t in range(TOKENS)]
    _, state = steps(mixer, heads[:BEFORE], None)
    pairs = [tuple(x.clone() for x in pair) for pair in mixer.pack_state(state)]
    assert len(pairs) == len(forms), f"{who}: {len(forms)} forms, but pack_state() gives {len(pairs)} pairs"
    wanted, end = steps(mixer, heads[BEFORE:], state)
    again, _ = steps(mixer, heads[BEFORE:], mixer.unpack_state(mixer.pack_state(state)))
    check_identical(again, wanted, f"{who}: going on from unpack_state(pack_state(state))")
    for t, (h, out) in enumerate(zip(heads[BEFORE:], wanted, strict=True)):
        outs = []
        for i, form in enumerate(forms):
            x: Any = h.x
            angles = None if h.cos is None or h.sin is None else (h.cos[0], h.sin[0])
            spikes = x.counts[0], x.scale[0]
            o, pairs[i] = reference.mix(form, h.q[0], h.k[0], h.v[0], pairs[i], spikes, angles)
            outs.append(o)
        check_identical(torch.cat(outs, -1), out[0], f"{who}: token {t} by the forms of lower()")
    more = [token(t) for t in range(TOKENS, TOKENS + 2)]
    check_identical(
        steps(mixer, more, mixer.unpack_state(list(pairs)))[0],
        steps(mixer, more, end)[0],
        f"{who}: going on from the states of the forms",
    )
    check_constants(mixer, lambda: steps(mixer, heads, None)[0], who)


@torch.no_grad()
def check_feedforward(component: Any, data: Any = None) -> None:
    """Rows through the form against the layer's own, with neurons at its sites and without."""
    who, x = label(component), rows()[:5]
    for neuron in (Mean, None):
        built = component.build(WIDTH, HIDDEN, lambda name, n, made=neuron: SpikeSite(made() if made else None, n))
        layer = in_integers(built)
        form = form_of(layer)
        if form is None:
            return
        y, state = layer(x[None], None, None)
        check_identical(reference.channels(form, x), y[0], f"{who}: the form of lower()")
        assert repr(form.state) == repr(state), f"{who}: the form's state is {form.state!r}, the layer's {state!r}"
        check_constants(layer, partial(first_of, layer, x[None]), who)


def first_of(layer: Any, x: Tensor) -> Any:
    """The output of a layer, without its state."""
    return layer(x, None, None)[0]


def form_of(module: Any) -> Any:
    """What a module says of itself; None where it has no form."""
    with contextlib.suppress(Unsupported):
        return lower(module, "it")
    return None


def token(t: int) -> Heads:
    """Heads of one token ``[1, 1, ·]``, with counts as the layer's input and angles of its position."""
    h, g, size = DIMS.n_heads, DIMS.n_kv_heads, DIMS.head_dim
    q, k, v = normal(10 * t, 1, 1, h, size), normal(10 * t + 1, 1, 1, g, size), normal(10 * t + 2, 1, 1, g, size)
    counts = (normal(10 * t + 3, 1, 1, WIDTH) * 3).round()
    turn = torch.full((1, 1, size // 2), float(t)) * torch.logspace(0, -2, size // 2)
    return Heads(q, k, v, SpikeTensor(counts, torch.full((1, 1, 1), 0.3)), turn.cos(), turn.sin())


def steps(mixer: Any, heads: list[Heads], state: Any) -> tuple[list[Tensor], Any]:
    """Outputs of tokens one by one, and the state behind them."""
    outs = []
    for h in heads:
        out, state = mixer(h, state, None)
        outs.append(out)
    return outs, state


def check_constants(module: Any, run: Callable[[], Any], who: str) -> None:
    """Change every number and tensor of a module in turn: where its output follows, its form must, too."""
    before, key = run(), fingerprint(lower(module, "it"))
    for name, change in altered_constants(module):
        with change:
            try:
                after = run()
            except Exception:  # a value that the module does not take
                continue
            if equal(after, before):
                continue
            try:
                found = fingerprint(lower(module, "it"))
            except Unsupported:
                continue
            assert found != key, f"{who}: lower() forgets {name}: it changes the output and not the form"


def equal(a: Any, b: Any) -> bool:
    """Equal bits."""
    try:
        check_identical(a, b, "")
    except AssertionError:
        return False
    return True


def altered_constants(module: nn.Module) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
    """``(name, block in which it is another)`` of every number and tensor."""
    for where, part in module.named_modules():
        for name, value in list(vars(part).items()):
            if name.startswith("_") or name in LEFT_OUT or not isinstance(value, bool | int | float):
                continue
            for other in others(value):
                yield f"{where}.{name}".lstrip("."), attribute_set(part, name, other)
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            for factor in (2.0, 0.5):
                yield f"{where}.{name}".lstrip("."), scaled(tensor, factor)


def others(value: Any) -> tuple[Any, ...]:
    """Other values of a number."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return value + 1, value - 1
    return (2.0, 0.5) if value in (float("inf"), float("-inf")) else (value * 1.7 + 0.3, value * 0.5)


@contextlib.contextmanager
def attribute_set(part: Any, name: str, value: Any) -> Iterator[None]:
    """Another value inside the block."""
    before = getattr(part, name)
    setattr(part, name, value)
    try:
        yield
    finally:
        setattr(part, name, before)


@contextlib.contextmanager
def scaled(tensor: Tensor, factor: float) -> Iterator[None]:
    """A tensor with other numbers inside the block."""
    before = tensor.clone()
    tensor.copy_((before.double() * factor + (factor > 1)).to(tensor.dtype) if tensor.dtype != torch.bool else ~before)
    try:
        yield
    finally:
        tensor.copy_(before)
