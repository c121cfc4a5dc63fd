"""Answers while kernels compile: operators whose kernel is not there yet run in plain torch, with the same bits.

A kernel says so by an attribute ``ready``: a function that is False while it is being compiled elsewhere, in which case
nobody has to wait for it. Kernels without one are compiled when they are called. Where a part of a kernel is there
earlier, an attribute ``meanwhile`` is that part: it returns NotImplemented for operands that it is not for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.ops.dispatch import OPERATORS, kernels, substitute
from fastsnn_events.exact_floats import count_linear_in_floats
from fastsnn_integer import deterministic

TURN = 5e-4
"""Seconds after which a thread that works in the background hands Python's lock on, where somebody waits for it. As
long as one of 5 ms, Python's own, keeps whoever answers waiting, so often it lets go of the lock."""

_background: list[float] = []  # what Python's own was, for each thread in the background
_entering = threading.Lock()

ROOM = 1 << 22  # products of queries and keys that are held at once


def attend_by_keys(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """`fastsnn_integer.deterministic.attend_naive`, whose scores are folded for many keys at once: the same bits.

    q ``[B,T,H,K]``, k ``[B,S,G,K]``, v ``[B,S,G,V]``, allowed ``[B,T,S]`` -> ``[B,T,H,V]``.
    """
    b, t, h, width = q.shape
    groups, keys = k.shape[2], k.shape[1]
    q = (q * width**-0.5).reshape(b, t, groups, h // groups, 1, width)
    if not keys:
        return q.new_zeros(b, t, h, v.shape[-1])
    together = max(1, ROOM // max(1, q.numel()))
    parts = k.transpose(1, 2)[:, None, :, None].split(together, -2)  # [B,1,G,1,s,K]
    seen = allowed[:, :, None, None]
    scores = torch.cat([deterministic.fold(q * part) for part in parts], -1).masked_fill(~seen, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    weights = torch.where(seen, deterministic.exp(scores - torch.where(seen.any(-1, keepdim=True), top, 0.0)), 0.0)
    # Numerator and denominator begin at +0, so adding 0 or -0 is leaving out.
    sums = q.new_zeros(*weights.shape[:-1], v.shape[-1] + 1)
    together = max(1, ROOM // max(1, sums.numel()))
    values = v.transpose(1, 2)[:, None, :, None].split(together, -2)  # [B,1,G,1,s,V]
    for w, some in zip(weights[..., None].split(together, -2), values, strict=True):
        parts = torch.cat([torch.where(w == 0, 0.0, w * some), w], -1).detach().movedim(-2, 0).contiguous()
        total = sums.numpy()  # the same memory; an addition of NumPy's takes a third of the time of one of torch's
        for part in parts.numpy():
            np.add(total, part, out=total)
    out, norm = sums[..., :-1], sums[..., -1:]
    return (out / torch.where(norm > 0, norm, 1.0)).reshape(b, t, h, v.shape[-1])


QUICKER: dict[str, Callable[..., Any]] = {"count_linear": count_linear_in_floats, "exact_attend": attend_by_keys}
"""What stands in for a naive twin that is slow for its being a definition."""


def being_compiled(device: str = "cpu") -> list[str]:
    """Operators whose kernels for `device` are being compiled elsewhere; asking begins it."""
    offered = [table for _, devices, table in kernels() if device in devices]
    names = {name for table in offered for name, kernel in table.items() if hasattr(kernel, "ready")}
    chosen = {name: OPERATORS[name].pick(device)[1] for name in sorted(names & OPERATORS.keys())}
    return [name for name, kernel in chosen.items() if hasattr(kernel, "ready") and not kernel.ready()]


def stand_in(name: str, device: str) -> Callable[..., Any]:
    """What answers for an operator: the part of its kernel that is there, where it can, else plain torch."""
    plain = QUICKER.get(name, OPERATORS[name].naive)
    part = getattr(OPERATORS[name].pick(device)[1], "meanwhile", None)
    if part is None:
        return plain

    def answer(*args: Any) -> Any:
        out = part(*args)
        return plain(*args) if out is NotImplemented else out

    return answer


@contextlib.contextmanager
def answer_meanwhile(device: str = "cpu") -> Iterator[None]:
    """Inside, nothing waits for a kernel that is being compiled; its operator's naive twin answers, bit for bit.

    Torch uses one thread less, whose core the compiling process has: two threads that wait for each other at every
    operation take many times as long where a third has one of their cores.
    """
    table = {name: stand_in(name, device) for name in being_compiled(device)}
    if not table:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        with substitute(table):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """Inside, a thread gives way to those who answer every `TURN`."""
    with _entering:
        _background.append(sys.getswitchinterval())
        sys.setswitchinterval(min(TURN, _background[0]))
    try:
        yield
    finally:
        with _entering:
            before = _background.pop(0)
            if _background:
                _background[0] = before
            else:
                sys.setswitchinterval(before)
