"""The prefix cache: states of a stream after known token prefixes, so that a shared beginning is read only once.

Float rounding depends on how a prompt is cut, and rounding decides spikes; so every prompt is cut at multiples of one
fixed chunk length, cached or not. A snapshot is taken at such a boundary (good for every prompt that shares the tokens
before it) and at the end of a prompt (good for the very same prompt, whose next logits it holds). What is resumed is
then bit for bit what a fresh reading would have computed.

Keys are SHA-256 chained over chunks, ``D_k = H(D_{k-1} ‖ tokens of chunk k)``: a key stands for all tokens before it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_core.state import nbytes, tree_map


@attrs.frozen(eq=False)
class Snapshot:
    """A state, the next token's logits where they are known, and the bytes of both."""

    state: Any
    logits: Tensor | None
    nbytes: int


def copied(state: Any) -> Any:
    """A state that shares no memory with `state` (a model may write into its own), with the same strides."""
    return tree_map(torch.Tensor.clone, state)


def keys(ids: list[int], chunk: int) -> list[bytes]:
    """Key of the prefix at every chunk boundary, in order, and of the whole where it ends between boundaries."""
    found, last = [], b""
    for begin in range(0, len(ids), chunk):
        last = hashlib.sha256(last + array("q", ids[begin : begin + chunk]).tobytes()).digest()
        found.append(last)
    return found


def worth_keeping(k: int, n: int) -> bool:
    """Is boundary k of n kept? The last, every power of two, and about eight to sixteen evenly spaced ones."""
    spacing = 1 << max(0, n.bit_length() - 4)
    return k == n or k & (k - 1) == 0 or k % spacing == 0


class PrefixCache:
    """Snapshots under a budget of bytes; the least recently used goes first. Not locked: one thread owns it."""

    def __init__(self, budget: int, chunk: int) -> None:
        self.budget, self.chunk = budget, chunk
        self.snapshots: OrderedDict[bytes, Snapshot] = OrderedDict()
        self.nbytes = 0

    def find(self, ids: list[int]) -> tuple[int, Snapshot | None]:
        """``(tokens, snapshot)`` of the longest usable prefix of `ids`; ``(0, None)`` where there is none.

        All of `ids` counts only where the snapshot knows the logits that follow.
        """
        if not self.snapshots:
            return 0, None
        known = keys(ids, self.chunk)
        for k in range(len(known), 0, -1):
            length = min(k * self.chunk, len(ids))
            hit = self.snapshots.get(known[k - 1])
            if hit is not None and (length < len(ids) or hit.logits is not None):
                self.snapshots.move_to_end(known[k - 1])
                return length, hit
        return 0, None

    def put(self, key: bytes, state: Any, logits: Tensor | None = None) -> None:
        """Keep a copy; what alone is larger than the budget is not kept."""
        old = self.snapshots.get(key)
        if old is not None and (old.logits is not None or logits is None):
            self.snapshots.move_to_end(key)
            return
        size = nbytes(state) + (0 if logits is None else nbytes(logits))
        if size > self.budget:
            return
        self.drop(key)
        while self.nbytes + size > self.budget:
            self.drop(next(iter(self.snapshots)))
        self.snapshots[key] = Snapshot(copied(state), None if logits is None else logits.clone(), size)
        self.nbytes += size

    def drop(self, key: bytes) -> None:
        """Forget a snapshot, where there is one."""
        gone = self.snapshots.pop(key, None)
        self.nbytes -= 0 if gone is None else gone.nbytes
