"""The fused step of a model, kept until its plan changes: made when asked for, or in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from typing import Any, NamedTuple

import torch

from fastsnn_core.lowering import lower
from fastsnn_events import input_major
from fastsnn_integer.answer_meanwhile import in_background
from fastsnn_integer.decode_step import NotYet, fingerprint
from fastsnn_integer.forms import gate_first
from fastsnn_integer.reference import DECODE_STEP, stepper


class Ready(NamedTuple):
    """A fused step: of which plan it is, who made it, the state before any token, and when that was looked at."""

    key: Any
    kernel: str
    made: Any
    first: Any
    looked: float


class Making(threading.Thread):
    """A thread that makes a model's fused step: half a second, in which the model itself goes on answering."""

    def __init__(self, model: Any) -> None:
        super().__init__(name="fastsnn-fused-step", daemon=True)
        self.model, self.threads = weakref.ref(model), torch.get_num_threads()

    def run(self) -> None:
        """`make_ready`; who asks next finds what went wrong for itself."""
        model = self.model()
        torch.get_num_threads()  # torch's first look in a thread takes what another one set last, which may be less
        torch.set_num_threads(self.threads)
        with contextlib.suppress(Exception), in_background():
            if model is not None:
                make_contiguous(model, PAUSE)
                model.fused = make_ready(model, wait=False)


PAUSE = 0.05
"""Seconds between two blocks whose weights a thread moves while the model answers."""

_cold: weakref.WeakKeyDictionary[Any, Making | None] = weakref.WeakKeyDictionary()
"""Models that answer while another process compiles; then the thread that makes the step."""


def first_state(model: Any) -> Any:
    """The state before any token, kept with the fused step: finding it takes as long as a short prompt."""
    if model.fused.first is None:
        with torch.no_grad():
            first = model(torch.empty(1, 0, dtype=torch.long), None, return_state=True, last=True)[1]
        model.fused = model.fused._replace(first=first)
    return model.fused.first


def ready_step(model: Any, wait: bool, within: float = 0.0) -> tuple[str, Any]:
    """``(kernel set, stepper)`` of the model as it is now, or was `within` seconds ago; `Unsupported` says why not."""
    if DECODE_STEP.pick("cpu")[0] == "naive":
        stepper(lower(model, ""))  # says why not
    if not wait and model.fused is None:
        not_yet(model)
    ready, now = model.fused, time.monotonic()
    if ready is None or now - ready.looked >= within:
        plan = lower(model, "")
        key = fingerprint(plan), torch.get_num_threads()
        if ready is None or ready.key != key:
            ready = make_ready(model, wait)
        model.fused = ready = ready._replace(looked=now)
    return ready.kernel, ready.made


def make_ready(model: Any, wait: bool) -> Ready:
    """The fused step of the model as it is now."""
    lower(model, "")  # says why not, before anything is changed
    make_contiguous(model)
    plan = lower(model, "")
    key = fingerprint(plan), torch.get_num_threads()
    return Ready(key, *stepper(plan, wait), None, time.monotonic())


def not_yet(model: Any) -> None:
    """`NotYet` while another process compiles the step, and then while a thread makes this model's; nothing where
    none does, or the thread could not."""
    if model.spec.quant is None:
        return  # it has no fused step, so nothing is compiled for it
    is_there: Any = getattr(DECODE_STEP.pick("cpu")[1], "ready", None)
    if is_there is not None and not is_there():
        _cold[model] = None
        raise NotYet("another process compiles the fused step; the model itself answers meanwhile, with the same bits")
    if model not in _cold:
        return
    making = _cold[model]
    if making is None:
        making = _cold[model] = Making(model)
        making.start()
    if making.is_alive():
        raise NotYet("the fused step is being made; the model itself answers meanwhile, with the same bits")
    del _cold[model]


def make_contiguous(model: Any, pause: float = 0.0) -> None:
    """Weights that read the same spikes lie side by side, so that one event reads one long row: q, k, v; up, gate.

    The layers keep views of the whole, so there is no second copy. Seconds of `pause` before each block leave the
    processor to others.
    """
    for block in model.layers:
        if pause:
            time.sleep(pause)
        a, f = block.attention, block.feedforward
        form = lower(f, "feedforward")
        ups = [form.up.layer] if form.gate is None else [form.up.layer, form.gate.layer]
        for layers in ([a.q, a.k, a.v], [] if gate_first(form) else ups):
            if not layers or any(layer.weight.dtype != torch.int8 for layer in layers):
                continue  # 4-bit rows of several projections cannot be one; gates that come first are read alone
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
