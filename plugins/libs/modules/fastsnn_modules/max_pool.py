"""`max_pool`: the maximum of windows that do not overlap, as one operator with its backward.

    y_o = max_k x_{o,k}      ∂L/∂x_{o,k} = ∂L/∂y_o where k is the first place of the maximum, else 0

k counts the places of window o row by row; NaN is larger than every number. Shapes: x ``[N,H,W]``, y ``[N,H',W']`` with
H' = ⌊H/h⌋ and W' = ⌊W/w⌋, places k ``[N,H',W']`` in one byte; rows and columns beyond the last window get no gradient.
Values, places and gradients are those of `torch.nn.functional.max_pool2d`, which keeps eight bytes for each place and
looks at the windows of an image one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastsnn_core.ops.dispatch import Operator, kernels
from fastsnn_core.site import FULL
from fastsnn_modules.operands import OperandError, Operands, imported_later

Window = tuple[int, int]
MOST = 256  # places of a window


def max_pool_naive(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The definition: torch's maxima ``[N,H',W']``, and their places in the windows."""
    h, w = window
    y, at = (z[:, 0] for z in F.max_pool2d(x[:, None], window, return_indices=True))
    row, column = at.div(max(1, x.shape[2]), rounding_mode="floor"), at % max(1, x.shape[2])
    return y, (row % h * w + column % w).to(torch.uint8)


def max_pool_backward_naive(grad: Tensor, place: Tensor, shape: tuple[int, int], window: Window) -> Tensor:
    """The definition: ``grad [N,H',W']`` at the places of the maxima, 0 elsewhere in ``[N,*shape]``."""
    h, w = window
    n, high, wide = grad.shape
    spread = grad.new_zeros(n, high, wide, h * w).scatter_(3, place.long()[..., None], grad[..., None])
    out = grad.new_zeros(n, *shape)
    out[:, : high * h, : wide * w] = spread.view(n, high, wide, h, w).transpose(2, 3).reshape(n, high * h, wide * w)
    return out


_POOL = Operands("max_pool", "x [N,H,W] full")
_POOL_BACK = Operands("max_pool_backward", "grad [N,H,W] full", "place [N,H,W] uint8")


def check_window(name: str, window: Any) -> None:
    """Two whole numbers, of so many places that one byte names each."""
    whole = isinstance(window, tuple) and len(window) == 2 and all(type(n) is int and n > 0 for n in window)
    if not whole or window[0] * window[1] > MOST:
        raise OperandError(f"{name}: a window is two whole numbers, of {MOST} places at most; got {window!r}")


def check_max_pool(x: Tensor, window: Window) -> None:
    """The operands of `max_pool_naive`."""
    sizes = _POOL(x)
    check_window("max_pool", window)
    if window[0] > sizes["H"] or window[1] > sizes["W"]:
        raise OperandError(
            f"max_pool: a window of {window[0]} x {window[1]} lies inside of {sizes['H']} x {sizes['W']}"
        )


def check_max_pool_backward(grad: Tensor, place: Tensor, shape: tuple[int, int], window: Window) -> None:
    """The operands of `max_pool_backward_naive`."""
    sizes = _POOL_BACK(grad, place)
    check_window("max_pool_backward", window)
    (h, w), room = window, (sizes["H"], sizes["W"])
    whole = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not whole or (shape[0] // h, shape[1] // w) != room:
        raise OperandError(f"max_pool_backward: {room[0]} x {room[1]} windows of {h} x {w} do not tile {shape!r}")
    if place.numel() and place.device.type != "meta" and int(place.max()) >= h * w:
        raise OperandError(f"max_pool_backward: place {int(place.max())} lies outside of a window of {h} x {w}")


MAX_POOL = Operator(
    "max_pool", max_pool_naive, plain=True, check=check_max_pool,
    samples=imported_later("fastsnn_modules.max_pool.forward_samples"),
)  # fmt: skip
MAX_POOL_BACKWARD = Operator(
    "max_pool_backward", max_pool_backward_naive, plain=True, check=check_max_pool_backward,
    samples=imported_later("fastsnn_modules.max_pool.backward_samples"),
)  # fmt: skip


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        y, place = MAX_POOL(x.device.type, x, window)
        ctx.save_for_backward(place)
        ctx.shape, ctx.window = tuple(x.shape[1:]), window
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _MaxPoolBackward.apply(grad, ctx.saved_tensors[0], ctx.shape, ctx.window), None


class _MaxPoolBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, place: Tensor, shape: tuple[int, int], window: Window) -> Tensor:
        ctx.save_for_backward(place)
        ctx.window = window
        return MAX_POOL_BACKWARD(grad.device.type, grad.contiguous(), place, shape, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (place,), (h, w) = ctx.saved_tensors, ctx.window
        n, high, wide = place.shape
        rows = grad[:, : high * h, : wide * w].reshape(n, high, h, wide, w).transpose(2, 3).flatten(3)
        return rows.gather(3, place.long()[..., None])[..., 0], None, None, None


def max_pool_2d(x: Tensor, window: Window) -> Tensor:
    """Maxima ``[…,H',W']`` of windows of ``x […,H,W]`` side by side: by a compiled kernel where there is one.

    torch's own function where there is none, and where torch's compiler, torch.func, an export or a forward-mode
    derivative looks at it.
    """
    plain = (
        x.ndim > 2
        and x.dtype in FULL
        and x.is_contiguous()
        and x.numel() > 0
        and 0 < window[0] * window[1] <= MOST
        and window[0] <= x.shape[-2]
        and window[1] <= x.shape[-1]
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())
        and forward_ad._current_level < 0
        and any(MAX_POOL.name in table and x.device.type in devices for _, devices, table in kernels())
    )
    if not plain:
        return F.max_pool2d(x, window, window)
    y: Tensor = _MaxPool.apply(x.reshape(-1, *x.shape[-2:]), window)
    return y.reshape(*x.shape[:-2], *y.shape[1:])


def forward_samples() -> Any:
    """Of ``max_pool``: even and odd sizes, ties, infinities and NaN."""
    draw = torch.Generator().manual_seed(0)
    for shape, window in (((3, 8, 12), (2, 2)), ((2, 7, 45), (2, 2)), ((1, 9, 10), (3, 2)), ((2, 5, 8), (1, 4))):
        x = (torch.randn(shape, generator=draw) * 2).round()
        x[0, 0, 0], x[0, -2, 1], x[-1, 1, 3] = float("nan"), -float("inf"), float("inf")
        yield x, window
        yield x.double(), window


def backward_samples() -> Any:
    """Of ``max_pool_backward``."""
    draw = torch.Generator().manual_seed(1)
    for x, window in forward_samples():
        y, place = max_pool_naive(x, window)
        yield torch.randn(y.shape, generator=draw, dtype=x.dtype), place, tuple(x.shape[1:]), window
