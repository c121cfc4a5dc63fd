"""What an error at each spike site costs at the output: all sites from one backward pass.

For small errors δ of what a site passes on, the divergence of the next token is the quadratic form of the Fisher
information,

    KL(dense ‖ perturbed)  ≈  ½ E_y (Σ_t g_t · δ_t)²,      g = ∂ Σ_t log p(y_t) / ∂x,   y_t drawn from p itself,

and since the errors of rounding and of dropping are nearly uncorrelated over channels and tokens, per token

    KL  ≈  ½ Σ_i F_i E[δ_i²],      F_i = E[g_i²]        (the diagonal; nats)

So F ``[D]`` of every site weighs its channels, and one pass gives the cost of any change of any site. The pass holds
the blocks' inputs and one block's graph at a time. Martens 2014 (arXiv 1412.1193) on Fisher and Gauss-Newton; weights
need no gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert.language.rebuild import WITHIN, bypass_neurons
from fastsnn_core import SpikeSite, SpikeTensor

PIECE = 512
"""Most tokens that are read at once."""
SAMPLE = 1024
"""Tokens that a site's figures are taken from."""
LOGITS = 1 << 22
"""Most logits that are held at once (16 MB in float32)."""


@attrs.frozen(eq=False)
class Sensitivity:
    """Of one site: a sample of its dense input ``x [n,D]`` (before the centre), and ``fisher [D]`` = E[g²]."""

    x: Tensor
    fisher: Tensor


@attrs.frozen(eq=False)
class Seen:
    """One part of the model on the way back.

    `number` of the block (None: head or embedding), its sites' figures by path, its input for some rows ``[B,T,D]`` and
    the angles that go with them, and E[g²] of the residual stream in front of it ``[D]``.
    """

    number: int | None
    sites: dict[str, Sensitivity]
    x: Tensor
    angles: Any
    stream: Tensor | None


def nothing() -> None:
    """A step of progress that nobody watches."""


def sensitivities(
    model: Any,
    tokens: Tensor,
    *,
    samples: int = 512,
    seed: int = 0,
    step: Callable[[], Any] = nothing,
    spiking: bool = False,
) -> Iterator[Seen]:
    """The sensitivities of a decoder on ``tokens [N,T]``: of the head, of the blocks from the last on, the embedding.

    Sites are named as in `site_table`; only those with a neuron are there. All of them are bypassed while the model
    runs, so the figures are those of the dense function; with `spiking` they stay on (gradients pass straight through),
    for a model that was trained with its spikes. Between two items the block just given may be changed in ways
    that leave its function as it is. `step` is called once per block forwards and once backwards.
    """
    dense = contextlib.nullcontext if spiking else bypass_neurons
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randperm(tokens.numel(), generator=generator)[:samples].sort().values
    rows = max(1, PIECE // tokens.shape[1])
    trained = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval().requires_grad_(False)
    try:
        places = torch.arange(tokens.shape[1])[None]
        angles = model.angles(places.expand(rows, -1)) if model.rotary else None
        with torch.no_grad(), dense(model):
            x = embedded = model.embedded(tokens, places)
            x = values_of(model.embed_site(x)[0])
            inputs = []
            for layer in model.layers:
                inputs.append(x)
                x = torch.cat([block_output(layer, piece, angles) for piece in x.split(rows)])
                step()
        with torch.enable_grad(), dense(model):
            leaf = x.requires_grad_()
            y = model.norm(leaf)
            at_head = score_gradient(model, y.detach().flatten(0, 1), generator).view_as(y)
            (gradient,) = torch.autograd.grad((y * at_head).sum(), leaf)  # grad(y, leaf, at_head) imports sympy
        at_end = {"head_site": seen(y.detach(), at_head, pick)} if model.head_site.neuron is not None else {}
        yield Seen(None, at_end, x.detach()[:rows], angles, squared(gradient))
        for i in reversed(range(len(model.layers))):
            x = inputs.pop()
            found, gradient = through(model.layers[i], x, gradient, angles, rows, pick, spiking)
            named = {f"layers.{i}.{path}": s for path, s in found.items()}
            yield Seen(i, named, x[:rows], angle_rows(angles, len(x[:rows])), squared(gradient))
            step()
        if model.embed_site.neuron is not None:
            yield Seen(None, {"embed_site": seen(embedded, gradient, pick)}, x[:rows], angles, None)
    finally:
        for p in trained:
            p.requires_grad_(True)
        model.train(training)


def block_output(layer: Any, x: Tensor, angles: Any) -> Tensor:
    """A block's output for some rows."""
    return layer(x, None, None, angle_rows(angles, len(x)))[0]


def angle_rows(angles: Any, rows: int) -> Any:
    """Angles of as many rows."""
    return None if angles is None else tuple(t[:rows] for t in angles)


def squared(gradient: Tensor) -> Tensor:
    """E[g²] ``[D]`` of ``[N,T,D]``."""
    return gradient.float().pow(2).mean((0, 1))


def seen(x: Tensor, gradient: Tensor, pick: Tensor) -> Sensitivity:
    """From a site's input and gradient ``[N,T,D]``."""
    return Sensitivity(x.flatten(0, 1)[pick].float(), squared(gradient))


def through(
    layer: Any, x: Tensor, gradient: Tensor, angles: Any, rows: int, pick: Tensor, spiking: bool = False
) -> tuple[dict[str, Sensitivity], Tensor]:
    """A block's sites, and the gradient of its input, from the gradient of its output ``[N,T,D]``."""
    at: dict[str, SpikeSite] = {path: layer.get_submodule(path) for path in WITHIN}
    at = {path: site for path, site in at.items() if site.neuron is not None}
    found: dict[str, list[Tensor]] = {path: [] for path in at}
    squares: dict[str, Tensor] = {}
    before, first = [], 0
    for piece, out in zip(x.split(rows), gradient.split(rows)):
        inputs: dict[str, Tensor] = {}
        handles = [site.register_forward_pre_hook(kept(path, inputs)) for path, site in at.items()]
        try:
            with torch.enable_grad(), contextlib.nullcontext() if spiking else passing(layer, at):
                leaf = piece.detach().requires_grad_()
                y = block_output(layer, leaf, angles)
                grads = torch.autograd.grad((y * out).sum(), [leaf, *inputs.values()])  # as above
        finally:
            for handle in handles:
                handle.remove()
        before.append(grads[0])
        here = pick[(pick >= first) & (pick < first + piece.shape[0] * piece.shape[1])] - first
        first += piece.shape[0] * piece.shape[1]
        for (path, value), g in zip(inputs.items(), grads[1:]):
            found[path].append(value.detach().flatten(0, 1)[here].float())
            squares[path] = squares.get(path, 0.0) + g.float().pow(2).sum((0, 1))
    count = x.shape[0] * x.shape[1]
    return {path: Sensitivity(torch.cat(found[path]), squares[path] / count) for path in at}, torch.cat(before)


def values_of(x: Any) -> Tensor:
    """The values of spikes; numbers as they are."""
    return x.value() if isinstance(x, SpikeTensor) else x


@contextlib.contextmanager
def passing(layer: nn.Module, at: dict[str, SpikeSite]) -> Iterator[None]:
    """Bypass a block's neurons, so that every site is still called: q, k and v are skipped where none has a neuron."""
    heads = [(site, site.neuron) for path, site in at.items() if path.endswith(("q_site", "k_site", "v_site"))]
    with bypass_neurons(layer):
        for site, neuron in heads:
            site.neuron, site.blend = neuron, 0.0
        try:
            yield
        finally:
            for site, _ in heads:
                site.neuron, site.blend = None, 1.0


def kept(path: str, inputs: dict[str, Tensor]) -> Any:
    """A hook that makes a site's input a tensor of its own in the graph."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs[path] = args[0] * 1.0
        return (inputs[path], *args[1:])

    return hook


@torch.no_grad()
def score_gradient(model: Any, y: Tensor, generator: torch.Generator) -> Tensor:
    """∂ log p(token) / ∂y ``[n,D]`` of the head's input ``[n,D]``, for tokens drawn from p."""
    weight = (model.embed if model.head is None else model.head).weight
    out = torch.empty_like(y)
    size = max(1, LOGITS // len(weight))
    for piece, into in zip(y.split(size), out.split(size)):
        p = F.linear(piece, weight).float().softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        into.copy_(weight[drawn] - p.to(weight.dtype) @ weight)
    return out
