"""Training over time with less memory: segments recomputed, segments cut off, or every step for itself.

    whole             ∂L/∂W through all T steps; memory grows with T
    checkpoint_time   the same gradients; N steps at a time are kept, the others run again in the backward pass
    tbptt             L = Σ_k (n_k / T) L_k over segments k of n_k steps; states go on, gradients stop between segments
    online = "sltt"   segments of one step: ∂L_t/∂W = Σ δ_t s_tᵀ, with no path through time (Meng et al. 2023,
                      arXiv 2302.14311)
    online = "ottt"   ∂L_t/∂W = Σ δ_t â_tᵀ, â_t = λ â_{t-1} + s_t, the input's trace with the leak λ of the neuron
                      behind (Xiao et al. 2022, arXiv 2210.04195)

With `tbptt` and `online` the loss is taken and differentiated segment by segment, so nothing of a segment is kept when
it is over, and batch norms use the statistics of each segment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import SpikeSite
from fastsnn_core.spike_tensor import densify
from fastsnn_core.state import tree_map
from fastsnn_train.config import TrainConfig

if TYPE_CHECKING:
    from fastsnn_train.loop.optimizer_step import OptimizerStep
    from fastsnn_train.samples.task import SampleTask

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def in_segments(config: TrainConfig) -> bool:
    """Is time cut into segments?"""
    return bool(config.checkpoint_time or config.tbptt) or config.online != "none"


def segment_losses(
    task: SampleTask, step: OptimizerStep, x: Tensor, y: Any, in_all: float | None
) -> Iterator[tuple[Tensor, float]]:
    """``(loss, share)`` to be differentiated one after the other; losses add up to that of the batch, shares to 1."""
    config, model = step.config, step.model
    check(model)
    with torch.no_grad():
        x = with_time(model, x)
    times = x.shape[1]
    if config.checkpoint_time:
        with step.autocast():
            out = checkpointed(partial(segment_outputs, task, model), model, x, config.checkpoint_time)
            rows, weights = task.rows(out, y)
            if weights is None:
                yield rows.mean(), 1.0
            else:
                yield (rows * weights).sum() / (weights.sum() if in_all is None else in_all), 1.0
        return
    length = config.tbptt or 1
    every_step = task.kind == "labelling"
    if every_step and in_all is None:
        in_all = float(task.weighing(y.flatten()).sum())
    around: AbstractContextManager[Any] = traced(model) if config.online == "ottt" else nullcontext()
    state = None
    with around:
        for begin in range(0, times, length):
            piece = x[:, begin : begin + length]
            share = piece.shape[1] / times
            with step.autocast():
                out, state = segment_outputs(task, model, piece, state)
                rows, weights = task.rows(out, y[:, begin : begin + length] if every_step else y)
                loss = rows.mean() if weights is None else (rows * weights).sum() / (in_all or weights.sum())
            state = tree_map(torch.Tensor.detach, state)
            yield loss if every_step else loss * share, share


def check(model: nn.Module) -> None:
    """A network must take and give its state."""
    takes = inspect.signature(model.forward).parameters
    if "state" not in takes or "return_state" not in takes or not hasattr(model, "spec"):
        raise FastSNNError(
            f"checkpoint_time, tbptt and online cut a network's time into segments; {type(model).__name__} does not "
            "take a state (a sequential or graph network does)"
        )


def with_time(model: Any, x: Tensor) -> Tensor:
    """``[B, T, …]``: samples as they are, or as the layer that begins time shows them."""
    shape = getattr(model.spec, "input", None) or model.spec.inputs[0].shape
    if x.ndim == len(shape) + 2:
        return x
    begins: Any = next((m for m in model.modules() if getattr(m, "begins_time", False)), None)
    if begins is None:
        raise FastSNNError("checkpoint_time, tbptt and online cut time into segments; these samples have no time")
    if begins.coder is not None and begins is not next(iter(getattr(model, "layers", ())), None):
        raise FastSNNError("checkpoint_time, tbptt and online need the coder (encode) to be the network's first layer")
    return begins.show(x)


def segment_outputs(task: SampleTask, model: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """``[B,n,C]`` of one segment, and the state behind it."""
    kept: list[Any] = []

    def call(z: Tensor) -> Any:
        out, after = model(z, state=state, return_state=True)
        kept.append(after)
        return out

    out = task.outputs(model, x, call)
    if out.shape[1] != x.shape[1]:
        raise FastSNNError(
            f"the network gives {out.shape[1]} outputs for {x.shape[1]} steps; a layer that ends time (mean) sees only "
            "a segment of it: leave the mean to the objective (readout)"
        )
    return out, kept[-1]


def checkpointed(run: Callable[[Tensor, Any], tuple[Tensor, Any]], model: nn.Module, x: Tensor, length: int) -> Tensor:
    """``[B,T,C]`` of all segments; each is run again in the backward pass."""
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        raise FastSNNError(
            f"checkpoint_time keeps the gradients of whole sequences, and batch norm ({norms[0]}) would use the "
            "statistics of a segment: take layer_norm or group_norm, or tbptt, which cuts the loss, too"
        )
    outs, state = [], None
    for piece in x.split(length, 1):
        out, state = checkpoint(run, piece, state, use_reentrant=False)
        outs.append(out)
    return torch.cat(outs, 1)


# -- OTTT: weights learn from traces of their input --------------------------------------------------------------


@contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """Inside the block the gradient of every projection's weights is that of its input's trace."""
    traces: dict[nn.Module, Tensor] = {}
    found = [(module, leak) for module, leak in leaks(model)]
    for module, leak in found:
        module.forward = partial(forward_traced, module, traces, leak)
    try:
        yield
    finally:
        for module, _ in found:
            del module.forward


def leaks(model: nn.Module) -> Iterator[tuple[Any, float]]:
    """Projections and the leak of the neuron, or the leaky readout, that each one drives; 0 where there is none."""
    waiting: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            waiting.append(module)
        elif isinstance(module, TRANSPOSED):
            raise FastSNNError(f"online = 'ottt' has no traces for {type(module).__name__} ({name}); take 'sltt'")
        elif isinstance(module, SpikeSite) and module.neuron is not None:
            beta = getattr(module.neuron, "beta", None)
            if not isinstance(beta, float):
                kind = type(module.neuron).__name__
                raise FastSNNError(f"online = 'ottt' needs neurons with one leak (lif); {name} is a {kind}")
            yield from ((m, beta) for m in waiting)
            waiting = []
        elif getattr(module, "keeps_state", False) and isinstance(logit := getattr(module, "logit", None), Tensor):
            yield from ((m, float(logit.detach().sigmoid())) for m in waiting)
            waiting = []
    yield from ((m, 0.0) for m in waiting)


def forward_traced(module: Any, traces: dict[nn.Module, Tensor], leak: float, x: Any) -> Tensor:
    """W s + b, whose gradient is Wᵀ δ to s and δ âᵀ to W."""
    s = densify(x)
    trace = s.detach() if module not in traces else s.detach() + leak * traces[module]
    traces[module] = trace
    apply = F.linear if isinstance(module, nn.Linear) else module._conv_forward
    bias = None if module.bias is None else module.bias.detach()
    learning = apply(trace, module.weight, module.bias)
    return apply(s, module.weight.detach(), bias) + (learning - learning.detach())
