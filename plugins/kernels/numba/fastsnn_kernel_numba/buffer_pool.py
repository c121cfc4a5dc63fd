"""Memory for large outputs: huge pages, kept for the next output of the same size when the last one is gone.

Touching 32 MiB for the first time costs 8192 page faults and the zeroing of as many pages, again for every fresh
output: several times what a memory-bound kernel takes. So outputs from `LARGE` bytes on live on whole huge pages
(where Linux grants them), and a buffer whose tensor has died is handed to the next tensor of its size. At most `KEEP`
bytes wait; `release` gives them back to the system.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL, LARGE, KEEP = 64 << 10, 4 << 20, 256 << 20
HUGE = 2 << 20
_block: dict[str, tuple[Any, int]] = {}
_filling = threading.Lock()
_free: dict[int, list[Any]] = {}  # buffers by size; single operations only, so that a finaliser may come at any time


class _Lease:
    """Memory under one tensor; the buffer goes back when the tensor's storage lets go of it."""

    def __init__(self, buffer: Any, size: int) -> None:
        self.buffer, self.size = buffer, size
        where = (buffer.ctypes.data, False)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": where, "version": 3}

    def __del__(self) -> None:
        if not hasattr(self, "size"):  # interrupted while it was made
            return
        if self.size + sum(size * len(kept) for size, kept in list(_free.items())) > KEEP:
            _free.clear()
        if self.size <= KEEP:
            _free.setdefault(self.size, []).append(self.buffer)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty``, but large tensors get memory that has been touched before, or whole huge pages."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return torch.empty(shape, dtype=dtype)
    room = -(-size // HUGE) * HUGE
    try:
        buffer = _free[room].pop()
    except (KeyError, IndexError):
        buffer = _fresh(room)
    out = torch.from_numpy(np.asarray(_Lease(buffer, room)))[:size].view(dtype).view(shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        out.fill_(math.nan if dtype.is_floating_point else torch.iinfo(dtype).max)  # what torch.empty promises then
    return out


def persistent_copy(t: Tensor) -> Tensor:
    """A contiguous copy of weights, on memory of their own: whole huge pages, which small ones share."""
    if t.nbytes < SMALL:
        return t.contiguous()
    return torch.from_numpy(_allocate(t.nbytes)).view(t.dtype).view(t.shape).copy_(t)


def zeros(shape: tuple[int, ...]) -> Any:
    """As ``np.zeros`` in float32, on huge pages like `persistent_copy`."""
    size = 4 * math.prod(shape)
    if size < SMALL:
        return np.zeros(shape, np.float32)
    return _allocate(size).view(np.float32).reshape(shape)  # memory that the system has just given is 0


def _allocate(size: int) -> Any:
    return _share(size) if size < LARGE else _fresh(-(-size // HUGE) * HUGE)[:size]


def _share(size: int) -> Any:
    """A piece of the block that is being filled; it lives as long as any of its pieces."""
    need = -(-size // 64) * 64
    with _filling:
        block, used = _block.get("now", (None, LARGE))
        if used + need > LARGE:
            block, used = _fresh(LARGE), 0
        _block["now"] = block, used + need
    return block[used : used + size]


def _fresh(size: int) -> Any:
    """Untouched memory that starts on a huge page; from the system, since malloc may hand out pages of 4 KiB again."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    area = mmap.mmap(-1, size + HUGE, **private)  # shared memory, the default, gets no huge pages
    memory = np.frombuffer(area, np.uint8)
    skip = -memory.ctypes.data % HUGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a wish
            area.madvise(mmap.MADV_HUGEPAGE)
    return memory[skip : skip + size]


def release() -> None:
    """Give all waiting memory back to the system."""
    _free.clear()
