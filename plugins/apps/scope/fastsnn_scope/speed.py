"""Milliseconds: of a decoded token, of the layers behind every site, and of the probes themselves."""

from __future__ import annotations

import inspect
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.subject import Data, observe

STEPS, WARM, PATIENCE = 12, 8, 2.0
LIMIT = 0.10  # of a pass, that looking may cost
SLOW = 1.0
"""Seconds of a pass from which on a single one of each kind is timed."""


def streams(model: nn.Module, inputs: Tensor) -> bool:
    """Does the model decode token by token?"""
    known = inspect.signature(model.forward).parameters
    return not inputs.is_floating_point() and inputs.shape[1] > 1 and {"state", "return_state"} <= set(known)


class Timeline:
    """While it is entered, what every weighted layer took and was given: ``events`` of the form of a Chrome trace."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.events, self.handles, self.began = model, list[Data](), list[Any](), list[float]()
        self.origin = time.perf_counter()

    def __enter__(self) -> Timeline:
        for name, module in self.model.named_modules():
            if isinstance(getattr(module, "weight", None), Tensor) and not list(module.children()):
                self.handles.append(module.register_forward_pre_hook(lambda *_: self.began.append(time.perf_counter())))
                self.handles.append(module.register_forward_hook(self.after(name)))
        return self

    def after(self, name: str) -> Any:
        """A hook that closes the event of layer `name`."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            end, begin = time.perf_counter(), self.began.pop()
            event = {"name": name, "ts": 1e6 * (begin - self.origin), "dur": 1e6 * (end - begin), "args": {}}
            self.events.append(event)
            x = args[0] if args else None
            if isinstance(x, SpikeTensor):
                silent = int((x.counts == 0).sum())
                rows = x.numel() // max(1, x.shape[-1])
                size = module.weight.numel() * module.weight.element_size()  # type: ignore[operator]
                event["args"] = {
                    "silent_inputs": silent, "inputs": x.numel(),
                    "bytes_unread": round(size * silent / max(1, x.numel()) * rows),
                }  # fmt: skip

        return hook

    def __exit__(self, *why: Any) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def decoding(model: Any, inputs: Tensor, *, kernels: bool = True) -> tuple[Data, list[Data]]:
    """``(figures, timeline)``: seconds of one token (one sample for models that do not stream), layer by layer.

    ``step_ms`` is the ordinary step's median, ``fused_ms``, with `kernels`, that of the fused step where there is one,
    ``layer_us`` the median of each weighted layer, timed by hooks in steps of their own.
    """
    training = model.training
    model.eval()
    try:
        if not streams(model, inputs):
            sample = inputs[:1]
            plain = timed(lambda: model(sample), 7)
            marks, layers, events = layered(model, [lambda: model(sample)] * 3)
            return {"unit": "sample", "step_ms": plain, "layer_us": layers, "runs": 7} | marks, events
        known = min(WARM, inputs.shape[1] - 1)
        state = model(inputs[:1, :known], return_state=True)[1]
        tokens = [inputs[:1, i : i + 1] for i in range(known, min(known + STEPS, inputs.shape[1]))]
        held, times, end = state, list[float](), time.perf_counter() + PATIENCE
        for token in [tokens[0], *tokens]:  # the first is warming up
            begin = time.perf_counter()
            held = model(token, state if token is tokens[0] else held, return_state=True)[1]
            times.append(time.perf_counter() - begin)
            if time.perf_counter() > end and len(times) > 2:
                break
        found: Data = {"unit": "token", "step_ms": 1e3 * statistics.median(times[1:] or times), "runs": len(times) - 1}
        found |= time_fused_step(model, inputs, known) if kernels else {}
        box = [state]

        def step(token: Tensor) -> None:
            box[0] = model(token, box[0], return_state=True)[1]

        marks, layers, events = layered(model, [lambda t=t: step(t) for t in tokens[:6]])
        return found | marks | {"layer_us": layers}, events
    finally:
        model.train(training)


def timed(call: Any, runs: int) -> float:
    """Median milliseconds; the first run warms up and is left out."""
    call()
    times, end = [], time.perf_counter() + PATIENCE
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
        if time.perf_counter() > end:
            break
    return 1e3 * statistics.median(times)


def time_fused_step(model: Any, inputs: Tensor, known: int) -> Data:
    """Milliseconds of the fused step, where there is one that needs no compiling now."""
    if not hasattr(model, "fast"):
        return {}
    stream = model.fast(model(inputs[:1, :known], return_state=True)[1], wait=False)
    if stream is None:
        return {"fused_ms": None, "why_not_fused": model.fast_step["why"]}
    ids, times = inputs[0, known : known + 2 * STEPS].tolist(), []
    for token in ids:
        begin = time.perf_counter()
        stream.step(token)
        times.append(time.perf_counter() - begin)
    return {"fused_ms": 1e3 * statistics.median(times[1:] or times), "kernel": model.fast_step["kernel"]}


def layered(model: nn.Module, calls: list[Any]) -> tuple[Data, dict[str, float], list[Data]]:
    """``(shares, median µs by layer, events)`` of calls under a `Timeline`, each call one event of its own."""
    times: dict[str, list[float]] = {}
    with Timeline(model) as line:
        for number, call in enumerate(calls):
            first, begin = len(line.events), time.perf_counter()
            call()
            whole = 1e6 * (time.perf_counter() - begin)
            for event in line.events[first:]:
                times.setdefault(event["name"], []).append(event["dur"])
            named = {"name": f"call {number}", "ts": 1e6 * (begin - line.origin), "dur": whole, "args": {"calls": 1}}
            line.events.append(named)
    layers = {name: round(statistics.median(t), 2) for name, t in times.items()}
    return {"layers_ms": round(sum(layers.values()) / 1e3, 4)}, layers, line.events


@torch.no_grad()
def probe_cost(model: nn.Module, inputs: Tensor) -> Data:
    """Milliseconds of a pass without and with the probes that this report reads, in turn; the fastest of up to five.

    On the CPU of processor time (``clock``), in which other programs do not count; elsewhere of the clock on the wall.
    """
    training = model.training
    model.eval()
    clock = time.process_time if inputs.device.type == "cpu" else time.perf_counter
    plain, watched = list[float](), list[float]()
    end = time.perf_counter() + PATIENCE
    try:
        while not plain or (len(plain) < 3 and plain[0] < SLOW) or (len(plain) < 5 and time.perf_counter() < end):
            for times, call in ((plain, lambda: model(inputs)), (watched, lambda: observe(model, inputs))):
                begin = clock()
                call()
                times.append(clock() - begin)
    finally:
        model.train(training)
    off, on = 1e3 * min(plain), 1e3 * min(watched)
    found = {"off_ms": round(off, 3), "on_ms": round(on, 3), "share": round(on / off - 1.0, 4), "runs": len(plain)}
    return found | {"limit": LIMIT, "clock": "processor" if clock is time.process_time else "wall"}


def says_cost(cost: Data) -> str:
    """``a pass takes 10.2 ms watched, 10 ms not (+2.0%, within the bound of 10%)``: of what `probe_cost` found."""
    on, off = (f"{cost[key]:,.0f}" if cost[key] >= 100 else f"{cost[key]:.3g}" for key in ("on_ms", "off_ms"))
    of = " of processor time" if cost.get("clock") == "processor" else ""
    kept = f"{'within' if cost['share'] <= cost['limit'] else 'over'} the bound of {cost['limit']:.0%}"
    return f"a pass takes {on} ms{of} watched, {off} ms not ({cost['share']:+.1%}, {kept})"
