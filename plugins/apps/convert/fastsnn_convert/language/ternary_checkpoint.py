"""BitNet directories as if their weights were floats: w = s t with t in {-1, 0, 1}, which is not rounded.

Linear layers are packed, uint8 ``[out/4, in]``: byte r of a column has the codes t + 1 of the outputs r, r + out/4, …
from the low bits up; or they are floats. Each has a `weight_scale` of one number, which an ``autobitlinear`` multiplies
with and a ``bitlinear`` divides by. With the mode ``online`` they are full weights that the model rounds whenever it
runs (absmean), as `fastsnn_integer.ternary.TernaryLinear` does. ``fastsnn export --to w1.58a`` finds codes and scales
again exactly. (transformers, integrations/bitnet.py; Ma et al. 2024, arXiv 2402.17764)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsnn_convert.language.hf_checkpoint import CONFIG, TYPES, Checkpoint, Entry, SourceError

PER_BYTE, SCALE = 4, "weight_scale"


class TernaryCheckpoint(Checkpoint):
    """The tensors of such a directory; each matrix under the name that its float form would have."""

    kinds = TYPES | {"U8": torch.uint8}
    unpacks = True

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        table: dict[str, Any] = self.config["quantization_config"]
        where = f"{self.folder / CONFIG}: quantization_config"
        kind, mode = table.get("linear_class") or "bitlinear", table.get("quantization_mode") or "offline"
        if kind not in ("bitlinear", "autobitlinear") or mode not in ("online", "offline"):
            raise SourceError(
                f"{where} has linear_class {kind!r} and quantization_mode {mode!r}; supported: bitlinear and "
                "autobitlinear, online and offline"
            )
        if table.get("use_rms_norm"):
            raise SourceError(f"{where} has use_rms_norm, a norm in front of every projection; supported: none")
        self.rounds = kind == "autobitlinear" and mode == "online"
        self.divides = kind == "bitlinear"
        self.stored = self.entries
        self.entries = {n: self.unpacked(e) for n, e in self.stored.items() if n.rpartition(".")[2] != SCALE}

    def unpacked(self, entry: Entry) -> Entry:
        """What an entry is where its four codes a byte are numbers."""
        if entry.dtype != torch.uint8:
            return entry
        if len(entry.shape) != 2:
            raise SourceError(f"{entry.file}: packed weights must be uint8 [·, ·], got {list(entry.shape)}")
        return Entry(entry.file, torch.float32, (PER_BYTE * entry.shape[0], entry.shape[1]))

    def read(self, name: str, into: Tensor) -> None:
        """Copy a tensor into `into`, unpacked and scaled."""
        entry, scale = self.stored[name], self.stored.get(f"{name.removesuffix('.weight')}.{SCALE}")
        if entry.dtype != torch.uint8 and (scale is None or self.rounds):
            super().read(name, into)
            return
        self.check(name, tuple(into.shape))
        weight = self._file(entry).get_tensor(name)
        if entry.dtype == torch.uint8:
            if int(((weight >> 1) & weight & 0x55).max()):
                raise SourceError(f"{entry.file}: {name} holds the code 3, which stands for no weight: it is damaged")
            weight = torch.cat([(weight >> shift) & 3 for shift in (0, 2, 4, 6)]).to(torch.float32) - 1
        if scale is not None:
            by = self._file(scale).get_tensor(f"{name.removesuffix('.weight')}.{SCALE}").float()
            if by.numel() != 1 or not bool(torch.isfinite(by).all()) or not float(by):
                raise SourceError(f"{scale.file}: the {SCALE} of {name} must be one number that is not 0")
            weight = weight.float() * (1 / by if self.divides else by)
        with torch.no_grad():
            into.copy_(weight)
