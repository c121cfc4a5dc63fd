"""Training over time with less memory: segments recomputed, segments cut off, or every step for itself.

    whole             ∂L/∂W through all T steps; memory grows with T
    checkpoint_time   the same gradients; N steps at a time are kept, the others run again in the backward pass
    tbptt             L = Σ_k (n_k / T) L_k over segments k of n_k steps; states go on, gradients stop between segments
    online            each step's loss, with no path through time: `fastsnn_train.samples.online`

With `tbptt` and `online` the loss is taken and differentiated segment by segment, so nothing of a segment is kept when
it is over. Batch norms (`fastsnn_train.samples.norms`) use the statistics of each segment, so with them gradients are
not those of the whole; under an online rule they use those that they keep. An online rule's gradients are those of
single steps; `STEPS` of them are computed together where every module says how (`online.can_be_joined`).
"""

from __future__ import annotations

import inspect
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import SpikeSite
from fastsnn_core.state import tree_map
from fastsnn_train.config import TrainConfig
from fastsnn_train.samples.norms import (
    batch_norms,
    first_statistics,
    gain_and_shift,
    norms_constant,
    norms_seen_before,
    norms_weighed,
)
from fastsnn_train.samples.online import can_be_joined, traced, within_steps

if TYPE_CHECKING:
    from fastsnn_train.loop.optimizer_step import OptimizerStep
    from fastsnn_train.samples.task import SampleTask

log = logging.getLogger("fastsnn")
STEPS = 16
"""Steps of an online rule that are computed together."""
TOLD: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks of which it was said that their batch norms see segments."""


def in_segments(config: TrainConfig) -> bool:
    """Is time cut into segments?"""
    return bool(config.checkpoint_time or config.tbptt) or config.online != "none"


def segment_losses(
    task: SampleTask, step: OptimizerStep, x: Tensor, y: Any, in_all: float | None
) -> Iterator[tuple[Tensor, float]]:
    """``(loss, share)`` to be differentiated one after the other; losses add up to that of the batch, shares to 1."""
    config, model = step.config, step.model
    takes_state(model)
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
    every_step = task.kind == "labelling"
    if every_step and in_all is None:
        in_all = float(task.weighing(y.flatten()).sum())
    online, state, begin = config.online != "none", None, 0
    length = 1 if online else config.tbptt
    with ExitStack() as around:
        if online:
            first_statistics(model, partial(only_seen, task, step, x))
            apply = around.enter_context(traced(model, len(x))) if config.online == "ottt" else gain_and_shift
            around.enter_context(norms_constant(model, apply))
        while begin < times:
            piece = x[:, begin : begin + length]
            share = piece.shape[1] / times
            with step.autocast(), norms_weighed(model, share):
                out, state = segment_outputs(task, model, piece, state)
                if every_step:
                    rows, weights = task.rows(out, y[:, begin : begin + length])
                elif online:  # the loss of every step
                    rows, weights = task.rows(out.flatten(0, 1)[:, None], y.repeat_interleave(out.shape[1], 0))
                else:
                    rows, weights = task.rows(out, y)
                if weights is None:
                    loss = rows.mean()
                else:
                    repeats = out.shape[1] if online and not every_step else 1
                    loss = (rows * weights).sum() / (in_all * repeats if in_all else weights.sum())
            begin += length
            if online and begin == 1 and can_be_joined(model, state):
                length = STEPS
                around.enter_context(within_steps(model))
            state = tree_map(torch.Tensor.detach, state)
            yield loss if every_step else loss * share, share


def only_seen(task: SampleTask, step: OptimizerStep, x: Tensor) -> Iterator[None]:
    """Runs one segment of `x` after the other; batch norms see them."""
    state = None
    for piece in x.split(STEPS, 1):
        with step.autocast():
            _, state = segment_outputs(task, step.model, piece, state)
        yield


def takes_state(model: nn.Module) -> None:
    """A network must take and give its state."""
    takes = inspect.signature(model.forward).parameters
    if "state" not in takes or "return_state" not in takes or not hasattr(model, "spec"):
        raise FastSNNError(
            f"only a network that takes a state can be run in segments of its time; {type(model).__name__} does not "
            "(a sequential or graph network does)"
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
    before = itertools.takewhile(lambda m: m is not begins, model.modules())
    if any(isinstance(m, SpikeSite) for m in before):
        raise FastSNNError(
            "segments of time begin at the input, and this network has spikes in front of the layer that begins time: "
            "they would be made at every step"
        )
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
    if (norms := batch_norms(model)) and model not in TOLD:
        TOLD.add(model)
        log.warning(
            "checkpoint_time: batch norms (%s) use the statistics of each segment of %d steps, so gradients are not "
            "those of the whole sequence; layer_norm and group_norm keep them",
            next(iter(norms)), length,
        )  # fmt: skip

    def again() -> tuple[Any, Any]:
        """Contexts of a segment's first run and of its second."""
        return nullcontext(), norms_seen_before(model)

    outs, state = [], None
    for piece in x.split(length, 1):
        with norms_weighed(model, piece.shape[1] / x.shape[1]):
            out, state = checkpoint(run, piece, state, use_reentrant=False, context_fn=again)
        outs.append(out)
    return torch.cat(outs, 1)
