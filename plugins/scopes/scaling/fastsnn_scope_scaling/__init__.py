"""Scaling: measured state bytes, peak memory and speed of a language model against sequence length."""

from __future__ import annotations

import inspect
import math
import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastsnn_core import Scope, hookimpl, param
from fastsnn_core.state import nbytes
from fastsnn_core.subject import Data, Subject

__version__ = "0.1.0"

GROWING = ("state_bytes", "peak_bytes", "prefill_seconds", "decode_seconds")


@frozen
class Scaling(Scope):
    """For each length T, one stream: state bytes after T tokens, peak bytes, tokens/s, seconds per further token.

    State bytes are `fastsnn_core.state.nbytes` of what the model returns. Peak is the most bytes of tensors alive at
    once during prefill beyond weights and input: on CUDA the allocator's figure, elsewhere counted by watching every
    operator's outputs (an operator's own workspace is not seen; process RSS is not used, since an allocator that
    keeps pages would make it say too much). Times are medians of up to `repeats` beside whatever else this machine
    does; fewer are taken, and lengths left out and named, to stay within about `seconds` (the first length is always
    done). Tokens are those of the subject, repeated.
    """

    name = "scaling"
    title = "Scaling with sequence length"
    order: ClassVar[int] = 40
    reading: ClassVar[str] = (
        "Measured on this machine with one stream. A flat state line means that a stream costs the same memory at "
        "token one million as at token one hundred; a rising one is a cache. Prefill speed that stays level means "
        "linear time, one that falls as the text grows means quadratic. Decoding is the time of one further token "
        "after the prefix. Peak memory is what prefill holds beyond the weights."
    )
    lengths: tuple[int, ...] = param(
        (64, 128, 256, 512, 1024), ge=1, le=2**22, unit="tokens", doc="sequence lengths", draw=((4, 8), (4,))
    )
    seconds: float = param(6.0, gt=0.0, le=3600.0, unit="s", doc="budget; later lengths are left out", draw=(0.5,))
    repeats: int = param(3, ge=1, le=101, doc="timings behind each median", draw=(1,))

    def measure(self, subject: Subject) -> Data:
        """All lengths that fit the budget."""
        if not subject.is_language_model:
            return {"reason": "scaling with sequence length is measured for language models only"}
        known = inspect.signature(subject.model.forward).parameters
        if "state" not in known or "return_state" not in known:
            return {
                "reason": f"{type(subject.model).__name__} does not take state= and return_state=, so nothing streams"
            }
        options = {"return_state": True} | ({"last": True} if "last" in known else {})
        seed = subject.inputs[:1].flatten()
        rows: list[Data] = []
        left: list[int] = []
        training = subject.model.training
        subject.model.eval()
        end, cost = time.perf_counter() + self.seconds, 0.0
        lengths = sorted(set(self.lengths))
        try:
            for i, n in enumerate(lengths):
                expected = cost * n / rows[-1]["tokens"] if rows else 0.0
                now = time.perf_counter()
                if rows and now + expected > end:
                    left.append(n)
                    continue
                tokens = seed.repeat(-(-n // len(seed)))[None, :n]
                rows.append(self.one(subject.model, tokens, options, now + (end - now) / (len(lengths) - i)))
                cost = rows[-1].pop("least")
        finally:
            subject.model.train(training)
        return self.summary(subject.model, rows, left)

    @torch.no_grad()
    def one(self, model: nn.Module, tokens: Tensor, options: dict[str, Any], end: float) -> Data:
        """One length: an untimed pass gives state and peak, then prefill and one further token are timed.

        Repeats stop at `end`; ``least`` is what this length had to cost: the untimed pass and one timing of each.
        """
        begin = time.perf_counter()
        (_, state), peak = peak_bytes(lambda: model(tokens, **options), tokens.device)
        watched = time.perf_counter() - begin
        prefill = timings(lambda: model(tokens, **options), self.repeats, tokens.device, end)
        model(tokens[:, -1:], state, **options)
        steps = timings(lambda: model(tokens[:, -1:], state, **options), 2 * self.repeats + 1, tokens.device, end)
        once, step = statistics.median(prefill), statistics.median(steps)
        return {
            "tokens": tokens.shape[1],
            "state_bytes": nbytes(state),
            "peak_bytes": peak,
            "prefill_seconds": once,
            "prefill_tokens_per_second": tokens.shape[1] / once,
            "prefill_timings": len(prefill),
            "decode_seconds": step,
            "decode_tokens_per_second": 1.0 / step,
            "decode_timings": len(steps),
            "least": watched + once + 2 * step,
        }

    def summary(self, model: nn.Module, rows: list[Data], left: list[int]) -> Data:
        """Rows with their growth, as text and table."""
        first, last = rows[0], rows[-1]
        constant = len({r["state_bytes"] for r in rows}) == 1
        course = "" if len(rows) == 1 else ", constant" if constant else f" at T = {last['tokens']}, growing"
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        repeats = sorted({r["prefill_timings"] for r in rows})
        times = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} … {repeats[-1]}"
        runs, threads = "run" if repeats == [1] else "runs", torch.get_num_threads()
        notes = [f"Medians of {times} {runs} on {device.type}, {threads} thread{'s' * (threads > 1)}, batch 1."]
        if repeats[0] < self.repeats:
            notes.append("Fewer runs than asked for fitted into the time: on a busy machine these speeds are too low.")
        if left:
            notes.append(
                f"Left out, since {self.seconds:g} s would have been exceeded: T = {', '.join(map(str, left))}."
            )
        columns = ["tokens", "state", "peak", "prefill tokens/s", "decode ms/token", "decode tokens/s"]
        cells = [
            [
                str(r["tokens"]), binary_bytes(r["state_bytes"]), binary_bytes(r["peak_bytes"]),
                f"{r['prefill_tokens_per_second']:,.0f}", f"{1e3 * r['decode_seconds']:.2f}",
                f"{r['decode_tokens_per_second']:,.0f}",
            ]
            for r in rows
        ]  # fmt: skip
        return {
            "rows": rows,
            "left_out": left,
            "constant_state": constant if len(rows) > 1 else None,
            "growth": {key: slope(first, last, key) for key in GROWING},
            "peak": "allocator" if device.type == "cuda" else "tensors alive",
            "headline": [
                ["state per stream", binary_bytes(last["state_bytes"]) + course],
                [f"prefill (T = {last['tokens']})", f"{rate_text(last['prefill_tokens_per_second'])} tokens/s"],
                ["decode", f"{rate_text(last['decode_tokens_per_second'])} tokens/s"],
            ],
            "tables": [{"title": "Measured", "columns": columns, "rows": cells}],
            "notes": notes,
        }  # fmt: skip

    def draw(self, data: Data, figure: Any) -> None:
        """Four panels over T, both axes logarithmic and with equal steps: a slope of one is linear growth."""
        if "reason" in data:
            figure.text(0.5, 0.5, data["reason"], ha="center", wrap=True)
            return
        rows = data["rows"]
        x = [r["tokens"] for r in rows]
        panels = (
            ("state per stream (KiB)", "state_bytes", 1 / 1024, "#0072b2"),
            ("peak memory of prefill (MiB)", "peak_bytes", 2**-20, "#0072b2"),
            ("prefill (tokens/s)", "prefill_tokens_per_second", 1.0, "#009e73"),
            ("decode (ms per token)", "decode_seconds", 1e3, "#009e73"),
        )
        figure.set_size_inches(9.5, 4.8)
        for axis, (title, key, unit, colour) in zip(figure.subplots(2, 2).flat, panels):
            y = [r[key] * unit for r in rows]
            axis.plot(x, y, color=colour, marker="o", markersize=5, linewidth=1.4)
            axis.set_title(title, loc="left")
            axis.set_xscale("log", base=2)
            if min(y) > 0:  # as many octaves as the lengths span, and two: growth with T is the diagonal
                axis.set_yscale("log", base=2)
                middle, half = math.sqrt(min(y) * max(y)), math.sqrt(max(max(y) / min(y), max(x) / min(x))) * 2
                axis.set_ylim(middle / half, middle * half)
            axis.set_xticks(x, [str(n) for n in x])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(lambda value, _: tick_text(value))
            grown = data["growth"].get(key) if key.endswith("bytes") else None  # that of times is this machine's noise
            if grown is not None:
                text = "constant" if grown == 0 else f"∝ $T^{{\\,{grown:.2f}}}$"
                axis.text(0.02, 0.95, text, transform=axis.transAxes, va="top", color="#555555")
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            if axis.get_subplotspec().is_last_row():
                axis.set_xlabel("tokens T")


def tick_text(value: float) -> str:
    """A number on an axis, three digits of it, never with an exponent."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def rate_text(value: float) -> str:
    """Tokens per second: whole numbers from ten on, two digits below."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


class Alive(TorchDispatchMode):
    """Bytes of storages that operators made and that are still alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, Any] = {}
        self.outside: dict[int, Any] = {}
        self.now = self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default wraps this class in torch.compile's machinery, whose import costs seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; storages seen first as an input belong to the caller."""
        for t in nested_tensors((args, kwargs)):
            storage = t.untyped_storage()
            key = storage._cdata
            if key not in self.live and key not in self.outside:
                self.outside[key] = weakref.ref(storage, partial(self.forget, key))
        out = func(*args, **(kwargs or {}))
        for t in nested_tensors(out):
            self.add(t.untyped_storage())
        return out

    def forget(self, key: int, _: Any) -> None:
        """The caller freed a storage: its address may come back as another."""
        self.outside.pop(key, None)

    def add(self, storage: Any) -> None:
        """Count a new storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.live or key in self.outside:
            return

        def gone(_: Any) -> None:
            if self.live.pop(key, None) is not None:
                self.now -= size

        self.live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def nested_tensors(tree: Any) -> list[Tensor]:
    """Tensors in nested arguments."""
    from torch.utils._pytree import tree_leaves

    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def peak_bytes(call: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """What `call` returns, and the most bytes alive at once while it ran, beyond those alive before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = call()
        torch.cuda.synchronize(device)
        return out, torch.cuda.max_memory_allocated(device) - before
    with Alive() as alive:
        out = call()
    return out, alive.peak


def timings(call: Callable[[], Any], repeats: int, device: torch.device, end: float) -> list[float]:
    """Seconds of each of `repeats` runs; fewer, but one at least, where the clock passes `end`."""
    times: list[float] = []
    while len(times) < repeats and (not times or time.perf_counter() < end):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return times


def slope(first: Data, last: Data, key: str) -> float | None:
    """Exponent p of key ∝ T^p between the shortest and the longest length; None where it cannot be told."""
    if first["tokens"] == last["tokens"] or first[key] <= 0 or last[key] <= 0:
        return None
    return math.log(last[key] / first[key]) / math.log(last["tokens"] / first["tokens"])


def binary_bytes(size: float) -> str:
    """Bytes in KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


@hookimpl
def fastsnn_scopes() -> list[type[Scope]]:
    """This plugin's scopes."""
    return [Scaling]
