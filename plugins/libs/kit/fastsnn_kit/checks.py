"""What neurons, attentions, feed-forward layers and surrogates promise, as functions that raise `AssertionError`.

Everything runs in float64: rounding differences between a full pass and its pieces then never reach a spike's edge,
so that "equal" can mean 1e-9. Exact promises (counts, integers) are checked bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import ops
from fastsnn_core.component import Attention, Component, Neuron, Surrogate
from fastsnn_core.heads import Dims, Heads
from fastsnn_core.moved import renamed
from fastsnn_core.site import SpikeSite
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import leaves

TOLERANCE = 1e-9
Run = Callable[[Tensor, Any, "Tensor | None"], tuple[Tensor, Any]]


def label(component: Component) -> str:
    """How a failure names the component: its spec."""
    from fastsnn_core import spec, toml

    return f"{component.kind} {toml.toml_value(spec.to_table(component))}"


def check_close(a: Tensor, b: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal shapes and values, to a tolerance relative to the values' size."""
    assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)} against {tuple(b.shape)}"
    if a.numel():
        scale = max(1.0, float(b.detach().abs().max()))
        worst = float((a.detach() - b.detach()).abs().max())
        assert worst <= tolerance * scale, f"{what}: differs by {worst:g}"  # NaN fails too


def dense_value(y: Any) -> Tensor:
    """An output as a plain tensor."""
    return y.value() if isinstance(y, SpikeTensor) else y


def sweep(b: int, t: int, d: int) -> Tensor:
    """Inputs of both signs over eight orders of magnitude, the same every time: some land near any threshold."""
    size = b * t * d
    order = torch.randperm(size, generator=torch.Generator().manual_seed(5))
    magnitude = torch.logspace(-4, 1.5, size, dtype=torch.float64)[order]
    return (magnitude * torch.where(torch.arange(size) % 3 == 0, -1.0, 1.0)).reshape(b, t, d)


def plain_site(name: str, features: int) -> SpikeSite:
    """A site without a neuron: the numbers pass as they are, so that gradients are exact."""
    return SpikeSite(None, features)


# -- streams: anything (x, state, reset) -> (y, state) ------------------------------------------------------------


def check_shapes(run: Run, x: Tensor, who: str, shape: Sequence[int] | None = None) -> None:
    """Output ``[B,T,·]`` finite and of the promised shape, also for an empty batch and for T = 1."""
    y = dense_value(run(x, None, None)[0])
    assert tuple(y.shape) == tuple(shape if shape is not None else x.shape), f"{who}: output shape {tuple(y.shape)}"
    assert bool(torch.isfinite(y).all()), f"{who}: output is not finite"
    for piece in (x[:0], x[:, :1]):
        y = dense_value(run(piece, None, None)[0])
        assert y.shape[:2] == piece.shape[:2], f"{who}: {tuple(piece.shape)} gives {tuple(y.shape)}"


def check_causal(run: Run, x: Tensor, t: int, who: str) -> None:
    """Changing the input from token t on leaves the outputs before t untouched."""
    changed = x.clone()
    changed[:, t:] = changed[:, t:].flip(-1) + 1
    before, after = (dense_value(run(z, None, None)[0])[:, :t] for z in (x, changed))
    check_close(after, before, f"{who} is not causal: the future (token {t} on) changed the past")


def check_deterministic(run: Run, x: Tensor, who: str) -> None:
    """The same input gives the same bits."""
    a, b = (dense_value(run(x, None, None)[0]) for _ in range(2))
    assert torch.equal(a, b), f"{who} is not deterministic: two runs on one input differ"


def check_streaming(run: Run, x: Tensor, pieces: Sequence[int], who: str) -> None:
    """Any cut of the sequence, with the state carried over, gives the full pass."""
    full, end = run(x, None, None)
    state, outs = None, []
    for piece in x.split(list(pieces), 1):
        y, state = run(piece, state, None)
        outs.append(dense_value(y))
    check_close(
        torch.cat(outs, 1), dense_value(full), f"{who} does not stream: pieces {list(pieces)} differ from the full pass"
    )
    for (name, a), (_, b) in zip(leaves(state), leaves(end), strict=True):
        check_close(a.double(), b.double(), f"{who} does not stream: final state {name!r}")


def check_reset(run: Run, x: Tensor, t: int, who: str) -> None:
    """A reset at token t makes the rest a document of its own."""
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[:, t] = True
    joined, alone = dense_value(run(x, None, reset)[0])[:, t:], dense_value(run(x[:, t:], None, None)[0])
    check_close(joined, alone, f"{who} lets a document leak past its end (reset at token {t})")


def check_batch(run: Run, x: Tensor, who: str) -> None:
    """A stream's output does not depend on who else is in the batch."""
    check_close(
        dense_value(run(x[:1], None, None)[0]),
        dense_value(run(x, None, None)[0])[:1],
        f"{who} mixes streams of a batch",
    )


def check_gradients(module: nn.Module, run: Run, x: Tensor, who: str) -> None:
    """Gradients of the input and of every parameter are finite, and not all zero."""
    leaf = x.clone().requires_grad_()
    y = dense_value(run(leaf, None, None)[0])
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).cos().reshape(y.shape)
    (y * weight).sum().backward()
    dead = []
    for name, grad in [("its input", leaf.grad), *((n, p.grad) for n, p in module.named_parameters())]:
        assert grad is None or bool(torch.isfinite(grad).all()), f"{who}: gradient of {name} is not finite"
        if grad is None or not bool((grad != 0).any()):
            dead.append(name)
    assert not dead, f"{who} has dead gradients: {', '.join(dead)}"


# -- one kind each ------------------------------------------------------------------------------------------------


def neuron_run(component: Neuron, features: int) -> tuple[nn.Module, Run]:
    """A neuron as a stream function, in float64."""
    module = component.build(features).double()
    return module, lambda x, state, reset: module(x, state, reset)


def check_neuron_counts(component: Neuron, x: Tensor) -> None:
    """The output is a SpikeTensor of whole counts whose value is counts · scale, in every view."""
    spikes, _ = neuron_run(component, x.shape[-1])[1](x, None, None)
    who = label(component)
    assert isinstance(spikes, SpikeTensor), f"{who} returned {type(spikes).__name__}, not a SpikeTensor"
    assert torch.equal(spikes.counts, spikes.counts.round()), f"{who}: counts are not whole numbers"
    check_close(spikes.value(), spikes.counts * spikes.scale, f"{who}: value is not counts · scale")
    packed = spikes.pack()
    assert torch.equal(packed.counts.to(spikes.counts.dtype), spikes.counts), f"{who}: packing changed counts"
    assert torch.equal(packed.event().counts, packed.counts.to(torch.int32)), f"{who}: events are not the counts"


def check_surrogate(component: Surrogate, u: Tensor) -> None:
    """Non-negative, finite, shaped like u, positive inside the counting range; the closed form agrees with it."""
    d, who = component.derivative(u, -2.5, 2.5), label(component)
    assert d.shape == u.shape, f"{who}: shape {tuple(d.shape)}"
    assert bool(torch.isfinite(d).all()), f"{who}: the derivative is not finite"
    assert bool((d >= 0).all()), f"{who}: the derivative is negative somewhere"
    assert float(component.derivative(torch.zeros(1, dtype=u.dtype), -2.5, 2.5)) > 0, f"{who} is dead inside the range"
    if code := component.code():
        check_close(d, ops.derivative(u, *code, -2.5, 2.5), f"{who}: the closed form is another function")


def attention_run(component: Attention, dims: Dims) -> tuple[nn.Module, Run]:
    """An attention over heads cut out of one tensor ``[B,T,(H+2G)K]``, in float64, rotated where it asks for it."""
    mixer = component.build_with_sites(dims, plain_site).double()
    h, g, width = dims.n_heads, dims.n_kv_heads, dims.head_dim
    into = torch.linspace(-1, 1, (h + 2 * g) * width * dims.d_model, dtype=torch.float64).sin()
    into = into.reshape((h + 2 * g) * width, dims.d_model)

    def run(x: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Any]:
        position, inner = state if state is not None else (0, None)
        q, k, v = (into @ x[..., None]).squeeze(-1).split([h * width, g * width, g * width], -1)
        angle = (position + torch.arange(x.shape[1]))[None, :, None] * torch.logspace(
            0, -2, width // 2, dtype=torch.float64
        )
        angle = angle.expand(x.shape[0], -1, -1)
        q, k, v = (z.unflatten(-1, (-1, width)) for z in (q, k, v))
        q, k, v = (z if name in component.projections else z[:, :, :0] for name, z in zip("qkv", (q, k, v)))
        heads = Heads(q, k, v, x, angle.cos(), angle.sin())
        y, inner = mixer(heads, inner, reset)
        return y, (position + x.shape[1], inner)

    return mixer, run


__getattr__ = renamed(__name__, {"same": "check_close", "value": "dense_value"})
