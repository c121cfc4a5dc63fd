"""Directories in 4 bits (GPTQ, AWQ, compressed-tensors) as if their weights were floats: w = s (q - z), not rounded.

A float16 or bfloat16 scale times a whole number below 32 is a float32 number, so that what is read is on the grid
that was stored, and ``fastsnn export --to w4a`` finds it again exactly. Layouts, of a matrix ``[out, in]``, eight codes
in an int32, the first in the lowest bits:

    gptq                 qweight [in/8, out], qzeros [G, out/8] (z - 1, but for gptq_v2), scales [G, out], g_idx [in]
    awq                  qweight [in, out/8], qzeros [G, out/8], both in the order 0 2 4 6 1 3 5 7, scales [G, out]
    compressed-tensors   weight_packed [out, in/8] (q + 8), weight_scale [out, G], weight_zero_point [out/8, G] (z + 8)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsnn_convert.language.hf_checkpoint import CONFIG, TYPES, Checkpoint, Entry, SourceError

METHODS = ("gptq", "awq", "compressed-tensors")
KINDS = TYPES | {"I32": torch.int32, "I64": torch.int64}
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MAIN = {"gptq": "qweight", "awq": "qweight", "compressed-tensors": "weight_packed"}
PARTS = ("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape",
         "weight_g_idx")  # fmt: skip


def unpacked(packed: Tensor, dim: int) -> Tensor:
    """Eight codes of every int32, side by side along `dim`."""
    codes = (packed.unsqueeze(dim + 1) >> (4 * torch.arange(8)).reshape(-1, *[1] * (packed.ndim - dim - 1))) & 15
    return codes.flatten(dim, dim + 1)


class Int4Checkpoint(Checkpoint):
    """The tensors of such a directory; each quantised matrix under the name that its float form would have."""

    kinds = KINDS
    unpacks = True

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        table: dict[str, Any] = self.config["quantization_config"]
        self.method = str(table["quant_method"])
        self.offset = 0
        self.stored = self.entries
        self.check_settings(table)
        self.entries = {n: e for n, e in self.stored.items() if n.rpartition(".")[2] not in PARTS}
        for name, entry in self.stored.items():
            owner, _, leaf = name.rpartition(".")
            if leaf == MAIN[self.method]:
                self.entries[f"{owner}.weight"] = Entry(entry.file, torch.float32, self.shape(owner, entry))
        if not any(n.rpartition(".")[2] == MAIN[self.method] for n in self.stored):
            raise SourceError(f"{self.folder} says it is {self.method}, but holds no {MAIN[self.method]}")

    def check_settings(self, table: dict[str, Any]) -> None:
        """Refuse what has other bits or another layout."""
        where = f"{self.folder / CONFIG}: quantization_config"
        if self.method == "compressed-tensors":
            groups = [g.get("weights") or {} for g in (table.get("config_groups") or {}).values()]
            form = table.get("format")
            if form != "pack-quantized" or not groups:
                raise SourceError(f"{where} has the format {form!r}; supported: pack-quantized int4 weights")
            for g in groups:
                if (g.get("num_bits"), g.get("type", "int")) != (4, "int"):
                    found = f"{g.get('num_bits')} bits ({g.get('type', 'int')})"
                    raise SourceError(f"{where} has weights of {found}; supported: 4 bits (int)")
            return
        bits = table.get("bits", table.get("w_bit"))
        if bits != 4:
            raise SourceError(f"{where} says {bits} bits; supported: 4")
        if self.method == "awq" and str(table.get("version", "gemm")).lower() != "gemm":
            raise SourceError(f"{where} has AWQ's layout {table.get('version')!r}; supported: gemm")
        self.offset = 1 if self.method == "gptq" and table.get("checkpoint_format", "gptq") == "gptq" else 0

    def shape(self, owner: str, entry: Entry) -> tuple[int, ...]:
        """``(out, in)`` of a packed matrix."""
        if len(entry.shape) != 2 or entry.dtype != torch.int32:
            raise SourceError(
                f"{entry.file}: {owner} is packed as {entry.dtype} {list(entry.shape)}, int32 [·, ·] wanted"
            )
        a, b = entry.shape
        if self.method == "compressed-tensors":
            whole = f"{owner}.weight_shape"
            return tuple(self.tensor(whole).tolist()) if whole in self.stored else (a, 8 * b)
        return (b, 8 * a) if self.method == "gptq" else (8 * b, a)

    def tensor(self, name: str) -> Tensor:
        """A stored tensor."""
        entry = self.stored.get(name)
        if entry is None:
            raise SourceError(f"{self.folder} has no {name}, which {self.method} weights need")
        return self._file(entry).get_tensor(name)

    def read(self, name: str, into: Tensor) -> None:
        """Copy a tensor into `into`, unpacked where it is packed."""
        owner = name.removesuffix(".weight")
        if f"{owner}.{MAIN[self.method]}" not in self.stored:
            super().read(name, into)
            return
        self.check(name, tuple(into.shape))
        with torch.no_grad():
            into.copy_(self.weight(owner, *into.shape))

    def weight(self, owner: str, out: int, width: int) -> Tensor:
        """The float32 matrix ``[out, in]``."""
        if self.method == "compressed-tensors":
            codes = unpacked(self.tensor(f"{owner}.weight_packed"), 1)[:, :width].T - 8
            scale = self.tensor(f"{owner}.weight_scale").float().T
            zero = torch.zeros(scale.shape, dtype=torch.int32)
            if f"{owner}.weight_zero_point" in self.stored:
                zero = unpacked(self.tensor(f"{owner}.weight_zero_point"), 0)[:out].T - 8
            index = f"{owner}.weight_g_idx"
        else:
            codes, zero = self.tensor(f"{owner}.qweight"), unpacked(self.tensor(f"{owner}.qzeros"), 1)
            scale, index = self.tensor(f"{owner}.scales").float(), f"{owner}.g_idx"
            if self.method == "gptq":
                codes, zero = unpacked(codes, 0), (zero + self.offset) & 15
            else:
                codes, zero = in_order(unpacked(codes, 1)), in_order(zero)
        groups = len(scale)
        if codes.shape != (width, out) or scale.shape != (groups, out) or zero.shape != scale.shape or width % groups:
            raise SourceError(
                f"{self.folder}: {owner} has codes {list(codes.shape)}, scales {list(scale.shape)} and zeros "
                f"{list(zero.shape)}, which do not go with a matrix [{out}, {width}]"
            )
        group = torch.arange(width) // (width // groups)
        if index in self.stored:
            given = self.tensor(index).long()
            if given.shape != (width,) or int(given.max()) >= groups or int(given.min()) < -1:
                raise SourceError(f"{self.folder}: {index} names groups that are not there")
            group = given if int(given.min()) >= 0 else group
        return ((codes - zero[group]).float() * scale[group]).T


def in_order(codes: Tensor) -> Tensor:
    """AWQ's columns, whose eights are stored as 0 2 4 6 1 3 5 7, in their own order."""
    eights = codes.unflatten(1, (-1, 8))
    return torch.empty_like(eights).index_copy_(2, torch.tensor(ORDER), eights).flatten(1)
