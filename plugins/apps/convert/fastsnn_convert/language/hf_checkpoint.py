"""Weights of a Hugging Face directory: safetensors files, whole or in shards, mapped into memory and never run.

The safetensors library checks each file's header when it opens it; `Checkpoint` checks the index, types and shapes
before any number is read: every error names the file, what is wrong with it and what is supported.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastsnn_convert.pickles import PICKLES
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import reading_tensors
from fastsnn_core.moved import renamed
from fastsnn_model_decoder import Decoder

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
HELD = 64 << 20  # bytes of a mapped file that may stay in memory while it is read
TYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16}
SUPPORTED = f"supported: {CONFIG} beside {SINGLE}, or {INDEX} with its shards, in float32, float64, bfloat16 or float16"


class SourceError(FastSNNError):
    """A source that cannot be converted: names the file, what is wrong, and what is supported."""


@attrs.frozen
class Entry:
    """One tensor of one file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """The tensors of a directory by name. `read` gives one tensor; its pages are given back to the system after."""

    kinds = TYPES
    unpacks = False

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self.entries = read_entries(self.folder, self.kinds)
        self._open: tuple[Path, Any] | None = None
        self._held = 0

    @property
    def described_in(self) -> Path:
        """The file that says what the network is."""
        return self.folder / CONFIG

    def tokenizer(self) -> Any:
        """The directory's tokenizer, as transformers reads it, or a sentence that says why there is none."""
        from fastsnn_text import hf_directory
        from fastsnn_text.tokenizers import from_directory

        found = hf_directory.read_tokenizer(self.folder, self.config)
        if found is None:
            return f"{self.folder} has no tokenizer.json, vocab.json with merges.txt, or tokenizer.model"
        return from_directory(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(e.nbytes for e in self.entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def dtype(self) -> torch.dtype:
        """The type most numbers are stored in."""
        size: dict[torch.dtype, int] = {}
        for e in self.entries.values():
            size[e.dtype] = size.get(e.dtype, 0) + e.nbytes
        return max(size, key=lambda kind: size[kind])

    def check(self, name: str, shape: tuple[int, ...]) -> Entry:
        """The entry of a tensor that must exist with this shape."""
        entry = self.entries.get(name)
        if entry is None:
            others = f"{len(self.entries)} others are there"
            raise SourceError(f"{self.folder} has no tensor {name!r}, which its {CONFIG} asks for; {others}")
        if entry.shape != shape:
            raise SourceError(
                f"{entry.file}: {name} has shape {list(entry.shape)}, its {CONFIG} asks for {list(shape)}"
            )
        return entry

    def read(self, name: str, into: Tensor) -> None:
        """Copy a tensor into `into` (any float type); its shape must be the one expected there."""
        entry = self.check(name, tuple(into.shape))
        with torch.no_grad(), reading_tensors():
            into.copy_(self._file(entry).get_tensor(name))

    def _file(self, entry: Entry) -> Any:
        """The entry's file, opened anew after `HELD` bytes: pages that were read are held as long as it is open."""
        if self._open is None or self._open[0] != entry.file or self._held > HELD:
            self._open, self._held = (entry.file, opened(entry.file)), 0
        self._held += entry.nbytes
        return self._open[1]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a directory, or an error that says what the directory is instead."""
    if not folder.exists():
        raise SourceError(f"{folder} does not exist; {SUPPORTED}")
    if not folder.is_dir():
        if folder.suffix in PICKLES:
            raise SourceError(f"{folder} is a pickle file, which can run code when it is read; {SUPPORTED}")
        raise SourceError(f"{folder} is a file, not a directory; {SUPPORTED}")
    path = folder / CONFIG
    if not path.is_file():
        raise SourceError(f"{path} is missing{instead(folder)}; {SUPPORTED}")
    config = read_hf_json(path)
    if not isinstance(config, dict):
        raise SourceError(f"{path} holds a {type(config).__name__}, not a table of settings")
    return config


def instead(folder: Path) -> str:
    """What a folder without config.json is, where it is something that people have."""
    if (folder / "adapter_config.json").is_file():
        return (
            ": this is an adapter (LoRA), not a model; merge it into its base with merge_and_unload() of peft and save"
        )
    if snapshots := sorted(folder.glob("snapshots/*/" + CONFIG)):
        return f": this is a folder of the hub's cache; the model is in {snapshots[-1].parent}"
    if below := sorted(folder.glob("*/" + CONFIG)):
        return f"; there is one in {below[0].parent}"
    return ""


def read_hf_json(path: Path) -> Any:
    """A JSON file, or an error that names it."""
    refuse_pointer(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from None


def refuse_pointer(path: Path) -> None:
    """An error where a clone without git-lfs left a pointer in the file's place."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SourceError(f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull in its folder")


def read_entries(folder: Path, kinds: dict[str, torch.dtype] = TYPES) -> dict[str, Entry]:
    """Every tensor of the directory: of the one file, else by the index (the order in which transformers looks)."""
    if (folder / SINGLE).is_file():
        return checked_header(folder / SINGLE, kinds)
    if (folder / INDEX).is_file():
        return from_index(folder, kinds)
    found = sorted(p.name for p in folder.iterdir() if p.is_file())
    if pickles := [name for name in found if Path(name).suffix in PICKLES]:
        raise SourceError(
            f"{folder / pickles[0]} is a pickle file, which can run code when it is read; {SUPPORTED}. "
            "Its owner can write safetensors with save_pretrained(…)"
        )
    if loose := [name for name in found if name.endswith(".safetensors")]:
        raise SourceError(f"{folder} has {loose[0]} but neither {SINGLE} nor {INDEX}; {SUPPORTED}")
    raise SourceError(f"{folder} has no weights; {SUPPORTED}")


def from_index(folder: Path, kinds: dict[str, torch.dtype]) -> dict[str, Entry]:
    """The tensors that an index maps to shards; a shard that is absent, outside, or lacks one is an error."""
    path = folder / INDEX
    index = read_hf_json(path)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise SourceError(f"{path} has no weight_map from tensor names to files")
    names = sorted(set(table.values()))
    for name in names:
        shard = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SourceError(f"{path} names a file outside the directory: {name}")
        if shard.suffix != ".safetensors":
            raise SourceError(f"{path} names {name}, which is no safetensors file; {SUPPORTED}")
        if not shard.is_file():
            raise SourceError(f"{shard} is missing; {path} names it")
    entries: dict[str, Entry] = {}
    for name in names:
        shard = folder / name
        found = checked_header(shard, kinds)
        wanted = {tensor for tensor, where in table.items() if where == name}
        if odd := sorted(wanted - set(found)):
            raise SourceError(f"{shard} does not hold {odd[0]}, which {path.name} says it does: a mismatched shard")
        if odd := sorted(set(found) - wanted):
            raise SourceError(f"{shard} holds {odd[0]}, which {path.name} does not list there: a mismatched shard")
        entries |= found
    return entries


def checked_header(path: Path, kinds: dict[str, torch.dtype]) -> dict[str, Entry]:
    """Every tensor of a safetensors file, in a type that can be converted."""
    refuse_pointer(path)
    found = {}
    file = opened(path)
    for name in file.offset_keys():
        row = file.get_slice(name)
        if (kind := row.get_dtype()) not in kinds:
            raise SourceError(f"{path}: {name} is stored as {kind}; {SUPPORTED}")
        found[name] = Entry(path, kinds[kind], tuple(row.get_shape()))
    return found


def opened(path: Path) -> Any:
    """A safetensors file, mapped into memory, its header checked against its size."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise SourceError(f"{path} is damaged, cut off, or no safetensors file: {error}; {SUPPORTED}") from None


@torch.no_grad()
def in_our_terms(name: str, parameter: Tensor, spec: Decoder, norm_offset: float) -> None:
    """A parameter of ours, which holds what the file has, becomes what we mean, in place.

    `norm_offset` is what the file's norms are less than their gains; q and k have the turning channels first there.
    """
    if norm_offset and name.endswith("norm.weight"):
        parameter.add_(norm_offset)
    if spec.rope.share < 1.0 and name.rpartition(".")[0].endswith((".attention.q", ".attention.k")):
        width = spec.dims.head_dim
        heads = parameter.view(-1, width, *parameter.shape[1:])
        heads.copy_(heads[:, spec.rope.order(width)].clone())


__getattr__ = renamed(__name__, {"CheckpointError": "SourceError"})
