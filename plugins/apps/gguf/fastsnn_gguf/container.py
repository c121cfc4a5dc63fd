"""The container: metadata and tensors of a GGUF file or of all parts of a split one, checked against the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

from fastsnn_convert.language.hf_checkpoint import SourceError

MAGIC = b"GGUF"
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
POINTER = b"version https://git-lfs"


@attrs.frozen
class GgufTensor:
    """A tensor: its file, its shape as torch has it, its type, and its mapped bytes or numbers by rows."""

    name: str
    file: Path
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    data: np.ndarray


class CheckedReader(GGUFReader):
    """The reader of the `gguf` package, which says by name which tensor is of an unknown type or cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        for field in fields:
            _, _, _, dims, raw, offset = field.parts
            try:
                kind = GGMLQuantizationType(int(raw[0]))
            except ValueError:
                known = ", ".join(TYPES)
                raise SourceError(
                    f"{self.path}: {field.name} is of the unknown type {int(raw[0])}; supported: {known}"
                ) from None
            if kind.name not in TYPES:
                raise SourceError(f"{self.path}: {field.name} is stored as {kind.name}; supported: {', '.join(TYPES)}")
            block, size = GGML_QUANT_SIZES[kind]
            count = int(np.prod([int(n) for n in dims], dtype=object)) if len(dims) else 1
            if len(dims) and int(dims[0]) % block:
                raise SourceError(f"{self.path}: {field.name} has rows of {int(dims[0])}, no multiple of {block}")
            end = start_offs + int(offset[0]) + count // block * size
            if end > len(self.data):
                says = f"{field.name} ends at byte {end}, the file has {len(self.data)}"
                raise SourceError(f"{self.path} is truncated: {says}")
        super()._build_tensors(start_offs, fields)


class Container:
    """Metadata and tensors of a file, or of all files of a split one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readers = [open_reader(path)]
        self.metadata = {key: field for key, field in self.readers[0].fields.items() if not key.startswith("GGUF.")}
        count = self.get("split.count", 1)
        if count > 1:
            parts = split_parts(path, count)
            self.readers = [open_reader(part) for part in parts]
            self.metadata = self.readers[0].fields
        self.tensors: dict[str, GgufTensor] = {}
        for reader in self.readers:
            for t in reader.tensors:
                if t.name in self.tensors:
                    raise SourceError(f"{reader.path} and {self.tensors[t.name].file} both hold {t.name}")
                shape = tuple(reversed([int(n) for n in t.shape]))
                self.tensors[t.name] = GgufTensor(t.name, reader.path, shape, t.tensor_type, t.data)
        said = self.get("split.tensors.count", len(self.tensors))
        if count > 1 and said != len(self.tensors):
            raise SourceError(f"{path}: its parts hold {len(self.tensors)} tensors together, its metadata says {said}")

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        field = self.metadata.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except (ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
            raise SourceError(f"{self.path}: {key} of its metadata cannot be read: {error}") from None


def open_reader(path: Path) -> CheckedReader:
    """The reader of one file."""
    if not path.is_file():
        raise SourceError(f"{path} does not exist; give a .gguf file")
    with path.open("rb") as file:
        first = file.read(len(POINTER))
    if first == POINTER:
        raise SourceError(f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull in its folder")
    if first[:4] != MAGIC:
        raise SourceError(f"{path} is no GGUF file: it begins with {first[:4]!r}, not {MAGIC!r}")
    try:
        found = CheckedReader(path)
    except SourceError:
        raise
    except Exception as error:  # numpy's and Python's own, for whatever a damaged table leads to
        raise SourceError(f"{path} is truncated or damaged ({type(error).__name__}: {error})") from None
    if found.byte_order != "I":
        raise SourceError(f"{path} is written for machines of the other byte order")
    return found


def split_parts(path: Path, count: int) -> list[Path]:
    """Every part of a split file, all of which must be there."""
    match = PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        says = f"is one of {count} parts, whose names end in -0000N-of-{count:05d}.gguf; give it its own name back"
        raise SourceError(f"{path} {says}")
    parts = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for part in parts:
        if not part.is_file():
            raise SourceError(f"{part} is missing: {path.name} is one of {count} parts")
    return parts
