"""Memory of a stream's state (constant, except for the KV cache of softmax layers), and free memory."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import attrs
import torch
from torch import nn

from fastsnn_core.errors import ArgumentError
from fastsnn_core.lowering import Unsupported, lower
from fastsnn_core.moved import renamed
from fastsnn_core.state import nbytes

BLOCK = 64  # tokens per block of a fused stream's KV cache
UNKNOWN = 2 << 30  # assumed if the platform does not report free memory


@attrs.frozen
class StateSizes:
    """Vocabulary size, bytes of a state after one token, bytes added per further token (0: constant size), and tokens
    per block in which caches are allocated."""

    vocab: int
    base: int
    growth: float
    block: int = 1

    def need(self, tokens: int) -> float:
        """Upper bound of the state of a stream of `tokens` tokens, in bytes."""
        return self.base + self.growth * (-(-tokens // self.block) * self.block - 1)

    def room(self, budget: float) -> int | None:
        """Number of tokens whose state fits `budget` bytes; None if the state has constant size."""
        if not self.growth:
            return None
        return max(0, 1 + int((budget - self.base) // self.growth)) // self.block * self.block


@torch.inference_mode()
def measure_state(model: nn.Module, device: torch.device) -> StateSizes:
    """State sizes, measured on 33 tokens, or as many as the model reads.

    Raises `ArgumentError` if the forward pass has another signature.
    """
    size = min(33, getattr(model, "longest", None) or 33)
    blank = torch.zeros(1, size, dtype=torch.long, device=device)
    try:
        with getattr(model, "meanwhile", nullcontext)():  # a server that starts does not wait for kernels
            logits, state = model(blank[:, :1], None, return_state=True, last=True)
            base = nbytes(state)
            logits, state = model(blank[:, 1:], state, return_state=True, last=True)
    except TypeError as error:
        raise ArgumentError(
            f"{type(model).__name__} cannot be served: a language model takes (tokens [B,T], state, return_state=True, "
            f"last=True) and gives (logits [B,1,V], state); it says: {error}"
        ) from error
    block = BLOCK if has_fused_form(model) else 1
    return StateSizes(int(logits.shape[-1]), base, max(0.0, (nbytes(state) - base) / (size - 1)), block)


def has_fused_form(model: nn.Module) -> bool:
    """Does the model have a fused form, whose caches are allocated in blocks?"""
    try:
        lower(model, "")
    except Unsupported:
        return False
    return True


def available(device: torch.device) -> int:
    """Free memory on `device` in bytes: as CUDA reports it, else the smaller of system and container (cgroup)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info, found = Path("/proc/meminfo"), []
    if info.is_file():
        lines = (line.split() for line in info.read_text(encoding="ascii").splitlines())
        found += [int(words[1]) << 10 for words in lines if words[0] == "MemAvailable:"]
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return min(found, default=UNKNOWN)


__getattr__ = renamed(__name__, {"measure": "measure_state"})
