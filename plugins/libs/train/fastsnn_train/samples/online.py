"""Online rules: every step learns for itself, with no path through time.

    sltt   ∂L_t/∂W = Σ δ_t s_tᵀ (Meng et al. 2023, arXiv 2302.14311)
    ottt   ∂L_t/∂W = Σ δ_t â_tᵀ, â_t = λ â_{t-1} + s_t, the input's trace with the leak λ of the neuron behind (Xiao et
           al. 2022, arXiv 2210.04195). Recurrent weights have the trace of the spikes that come back: for leaky neurons
           that is e-prop with symmetric feedback (Bellec et al. 2020, doi 10.1038/s41467-020-17236-y), and of one such
           layer without recurrent weights the gradient itself, where the loss is that of every step

δ_t goes through the layers at step t alone: states are constants. Steps one after the other are that by themselves.
Several steps in one pass are, where every module that keeps a state says how: its method ``within_step``, with the
arguments of ``forward``, gives the same values, and gradients that do not pass from one step to another. A neuron
without one is run step by step, in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import SpikeSite, sites
from fastsnn_core.spike_tensor import SpikeTensor, densify
from fastsnn_core.state import tree_map
from fastsnn_train.samples.norms import Apply, gain_and_shift, per_channel

NORMS = nn.modules.batchnorm._BatchNorm
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def state_keepers(model: nn.Module) -> dict[str, Any]:
    """Modules other than spike sites that keep a state, by the name of that state."""
    return {m.label: m for m in model.modules() if getattr(m, "keeps_state", False) and isinstance(m.label, str)}


def can_be_joined(model: nn.Module, state: Any) -> bool:
    """May several steps of an online rule be one pass: is all of the `state` of modules that `within_steps` knows?"""
    if not isinstance(state, Mapping):
        return False
    known = {getattr(site, "label", None) for site in sites(model).values()}
    known |= {name for name, m in state_keepers(model).items() if callable(getattr(m, "within_step", None))}
    return set(state) <= known


@contextmanager
def within_steps(model: nn.Module) -> Iterator[None]:
    """Inside the block no gradient passes from a step to another, at the same values."""
    changed: list[nn.Module] = []
    try:
        for module in [site.neuron for site in sites(model).values()] + list(state_keepers(model).values()):
            found = getattr(module, "within_step", None)
            module.forward = found if callable(found) else partial(step_by_step, module.forward)
            changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def step_by_step(
    forward: Callable[..., tuple[SpikeTensor, Any]], x: Tensor, state: Any = None, reset: Tensor | None = None
) -> tuple[SpikeTensor, Any]:
    """A neuron's ``forward`` on one step of ``x [B,T,D]`` after the other; the state is a constant of each."""
    rows: list[SpikeTensor] = []
    for t in range(x.shape[1]):
        state = tree_map(torch.Tensor.detach, state)
        spikes, state = forward(x[:, t : t + 1], state, None if reset is None else reset[:, t : t + 1])
        rows.append(spikes)
    if not rows:
        return forward(x, state, reset)
    scale = rows[0].scale
    scale = scale if scale.ndim < 3 else torch.cat([row.scale for row in rows], 1)
    return SpikeTensor(torch.cat([row.counts for row in rows], 1), scale), state


# -- OTTT: weights learn from traces of their input --------------------------------------------------------------


@contextmanager
def traced(model: nn.Module, batch: int) -> Iterator[Apply]:
    """Inside the block the gradient of projections' parameters is that of their inputs' traces, of `batch` streams.

    The block gets what batch norms do with their standardised input: γ x̂ + β, with traces too.
    """
    traces: dict[Any, Tensor] = {}
    found = dict(leaks(model))
    projections = [module for module in found if not isinstance(module, NORMS)]
    for module in projections:
        module.forward = partial(forward_traced, module, traces, found[module], batch)
    try:
        yield lambda norm, x: affine_traced(norm, traces, found.get(norm, 0.0), batch, x)
    finally:
        for module in projections:
            del module.forward


def leaks(model: nn.Module) -> Iterator[tuple[Any, float]]:
    """Projections, norms, and the leak of the neuron or leaky readout that each one drives; 0 where there is none."""
    waiting: list[nn.Module] = []
    inside: set[nn.Module] = set()  # recurrent weights drive their own neuron
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | NORMS):
            waiting.append(module)
        elif isinstance(module, TRANSPOSED):
            raise FastSNNError(f"online = 'ottt' has no traces for {type(module).__name__} ({name}); take 'sltt'")
        elif isinstance(module, SpikeSite) and module.neuron is not None:
            beta = getattr(module.neuron, "beta", None)
            if not isinstance(beta, float):
                kind = type(module.neuron).__name__
                raise FastSNNError(f"online = 'ottt' needs neurons with one leak (lif); {name} is a {kind}")
            inside |= set(module.neuron.modules())
            waiting += [m for m in module.neuron.modules() if isinstance(m, nn.Linear)]
            yield from ((m, beta) for m in waiting)
            waiting = []
        elif getattr(module, "keeps_state", False) and isinstance(logit := getattr(module, "logit", None), Tensor):
            yield from ((m, float(logit.detach().sigmoid())) for m in waiting)
            waiting = []
    yield from ((m, 0.0) for m in waiting)


@torch.no_grad()
def input_trace(s: Tensor, before: Tensor | None, leak: float, batch: int) -> tuple[Tensor, Tensor]:
    """â ``[B·n, …]`` of ``s [B·n, …]``, n steps of `batch` streams, and the last one ``[B, …]``."""
    rows = s.reshape(batch, -1, *s.shape[1:])
    trace = rows.clone()
    for t in range(rows.shape[1]):
        if before is not None:
            trace[:, t] += leak * before
        before = trace[:, t]
    return trace.reshape(s.shape), trace[:, -1].clone()


def forward_traced(module: Any, traces: dict[Any, Tensor], leak: float, batch: int, x: Any) -> Tensor:
    """W s + b, whose gradient is Wᵀ δ to s, δ âᵀ to W, and δ times the trace of 1 to b."""
    s = densify(x)
    trace, traces[module] = input_trace(s.detach(), traces.get(module), leak, batch)
    apply = F.linear if isinstance(module, nn.Linear) else module._conv_forward
    learning = apply(trace, module.weight, None)
    bias = None
    if module.bias is not None:
        key, channels = (module, "bias"), (-1, *[1] * (module.weight.ndim - 2))
        ones, traces[key] = input_trace(s.new_ones(len(s), 1), traces.get(key), leak, batch)
        bias = module.bias.detach()
        learning = learning + ones.reshape(-1, *[1] * (learning.ndim - 1)) * module.bias.reshape(channels)
    return apply(s, module.weight.detach(), bias) + (learning - learning.detach())


def affine_traced(norm: Any, traces: dict[Any, Tensor], leak: float, batch: int, x: Tensor) -> Tensor:
    """γ x̂ + β, whose gradient is γ δ to x̂, δ times the trace of x̂ to γ, and δ times the trace of 1 to β."""
    if norm.weight is None:
        return gain_and_shift(norm, x)
    trace, traces[norm] = input_trace(x.detach(), traces.get(norm), leak, batch)
    ones, traces[norm, "bias"] = input_trace(x.new_ones(len(x), 1), traces.get((norm, "bias")), leak, batch)
    learning = trace * per_channel(norm.weight, x)
    learning = learning + ones.reshape(-1, *[1] * (x.ndim - 1)) * per_channel(norm.bias, x)
    out = x * per_channel(norm.weight.detach(), x) + per_channel(norm.bias.detach(), x)
    return out + (learning - learning.detach())
