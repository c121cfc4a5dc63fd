"""The exact operators in NumPy: the bits of `fastsnn_integer.deterministic`, for while their kernels compile.

A token's operands are small, so that the number of calls is what takes time, and one of NumPy's on views takes a third
of what torch's take. Sums, products, quotients, rounding and the root of a double are IEEE 754's in both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_integer import deterministic

ROOM = 1 << 22
"""Products of queries and keys that are held at once."""

NOTHING, NEVER = np.float32(0), np.float32(-np.inf)


def without_warnings(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Infinities and NaN are results like others, as in torch."""

    @wraps(call)
    def quiet(*args: Any) -> Tensor:
        with np.errstate(all="ignore"):
            return call(*args)

    return quiet


def fold_array(x: Any) -> Any:
    """Sum over the first dimension by halves; 0 for an empty one. What fills the second half up is 0, and is added."""
    size = len(x)
    if size < 2:
        return x[0] if size else np.zeros(x.shape[1:], np.float32)
    half = (1 << (size - 1).bit_length()) // 2
    sums, both = np.empty((half, *x.shape[1:]), np.float32), size - half
    np.add(x[:both], x[half:], out=sums[:both])
    np.add(x[both:half], NOTHING, out=sums[both:])  # -0 becomes 0
    while half > 1:
        half //= 2
        np.add(sums[:half], sums[half : 2 * half], out=sums[:half])
    return sums[0]


def exp_array(x: Any) -> Any:
    """`fastsnn_integer.deterministic.exp`."""
    low, high = deterministic.ROOM
    x = np.minimum(np.maximum(x, low), high)
    n = np.rint(x * deterministic.LOG2E)
    r = (x - n * deterministic.LN2_HIGH) - n * deterministic.LN2_LOW
    p = r * deterministic.TAYLOR[0]
    for c in deterministic.TAYLOR[1:-1]:
        p += c
        p *= r
    p += deterministic.TAYLOR[-1]
    return p * ((n.astype(np.int32) + 127) << 23).view(np.float32)


def relu(x: Any) -> Any:
    """x, 0 where it is below."""
    return np.where(x < 0, NOTHING, x)


FORMS: dict[str, Callable[[Any], Any]] = {
    "exp": exp_array,
    "sigmoid": lambda x: 1.0 / (exp_array(-x) + 1.0),
    "silu": lambda x: x / (exp_array(-x) + 1.0),
    "relu": relu,
    "relu2": lambda x: relu(x) * relu(x),
    "elu1": lambda x: np.where(x > 0, x + 1.0, exp_array(x)),
}
SUMS: dict[str, Callable[[Any], Any]] = {"sum": lambda x: x, "abs": np.abs, "square": lambda x: x * x}


@without_warnings
def unary_in_numpy(x: Tensor, form: str) -> Tensor:
    """`fastsnn_integer.deterministic.unary_naive`."""
    if form not in FORMS:
        return deterministic.unary_naive(x, form)
    return torch.from_numpy(FORMS[form](x.numpy().reshape(-1))).view(x.shape)


@without_warnings
def row_sum_in_numpy(x: Tensor, form: str) -> Tensor:
    """`fastsnn_integer.deterministic.row_sum_naive`, ``[N, D] -> [N]``."""
    return torch.from_numpy(fold_array(SUMS[form](x.numpy()).T))


@without_warnings
def norm_in_numpy(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`fastsnn_integer.deterministic.norm_naive`, ``[N, D] -> [N, D]``."""
    x = rows.numpy()
    mean = fold_array((x * x).T)[:, None] / max(1, x.shape[1])
    x = x / np.sqrt((mean + eps).astype(np.float64)).astype(np.float32)
    return torch.from_numpy(x * weight.numpy() if weight.numel() else x)


@without_warnings
def attend_in_numpy(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """`fastsnn_integer.deterministic.attend_naive`, whose scores are folded for many keys at once.

    q ``[B,T,H,K]``, k ``[B,S,G,K]``, v ``[B,S,G,V]``, allowed ``[B,T,S]`` -> ``[B,T,H,V]``.
    """
    b, t, h, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    if not keys:
        return q.new_zeros(b, t, h, v.shape[-1])
    queries = (q.numpy() * width**-0.5).reshape(b, t, groups, h // groups, 1, width)
    # Channels first: [K,B,T,G,R,1] and [K,B,1,G,1,S].
    queries, by_head = np.moveaxis(queries, -1, 0), k.numpy().transpose(3, 0, 2, 1)[:, :, None, :, None]
    together = max(1, ROOM // max(1, queries.size))
    parts = [fold_array(queries * by_head[..., i : i + together].copy()) for i in range(0, keys, together)]
    seen = allowed.numpy()[:, :, None, None]
    scores = np.where(seen, np.concatenate(parts, -1), NEVER)
    scores = exp_array(scores - scores.max(-1, keepdims=True))  # NaN where no key may be seen
    weights = np.moveaxis(np.where(seen, scores, NOTHING), -1, 0)[..., None]  # [S,B,T,G,R,1]
    values = v.numpy().swapaxes(0, 1)[:, :, None, :, None]  # [S,B,1,G,1,V]
    # Numerator and denominator begin at +0, so adding 0 or -0 is leaving out.
    sums = np.zeros((b, t, groups, h // groups, v.shape[-1] + 1), np.float32)
    together = max(1, ROOM // max(1, sums.size))
    for i in range(0, keys, together):
        w = weights[i : i + together]
        terms = np.empty((len(w), *sums.shape), np.float32)
        terms[..., -1:] = w
        np.multiply(w, values[i : i + together], out=terms[..., :-1])
        if not w.all():
            np.copyto(terms, NOTHING, where=w == 0)
        for term in terms:  # a reduction does not promise an order
            np.add(sums, term, out=sums)
    out, total = sums[..., :-1], sums[..., -1:]
    return torch.from_numpy((out / np.where(total > 0, total, np.float32(1))).reshape(b, t, h, v.shape[-1]))
