"""Samples from arrays: tuples, dicts, .npz, .npy, IDX files (plain or gzip), torch Datasets."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastsnn_train.data.documents import DataError
from fastsnn_train.data.sources import first_line
from fastsnn_train.samples.labels import numbered
from fastsnn_train.samples.sample_set import SampleSet, sample_array, stacked

INPUTS = ("x", "X", "inputs", "input", "images", "image", "img", "data", "audio", "sequence", "series", "values")
TARGETS = ("y", "Y", "targets", "target", "labels", "label", "class", "fine_label")
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def inputs_and_targets(x: Any, y: Any, where: str) -> SampleSet:
    """Inputs ``[N, …]`` and targets ``[N, …]``."""
    inputs = x if isinstance(x, np.ndarray) and x.dtype != object else None
    if isinstance(x, Tensor):
        inputs = x.detach().cpu().numpy()
    inputs = stacked(list(x), where) if inputs is None else inputs
    targets, classes = numbered(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, where)
    if inputs.ndim < 2:
        raise DataError(f"the inputs of {where} must be [samples, …], got the shape {inputs.shape}")
    if inputs.dtype.kind not in "buif":
        raise DataError(f"the inputs of {where} must be numbers, got {inputs.dtype}")
    if targets.ndim == 2 and targets.shape[1] == 1 and targets.dtype.kind in "iu":
        targets = targets[:, 0]
    if len(inputs) != len(targets):
        raise DataError(f"{where} has {len(inputs)} inputs and {len(targets)} targets")
    return SampleSet(inputs, targets, len(inputs), where, classes)


def named_columns(table: Mapping[str, Any], where: str, x: str = "", y: str = "") -> SampleSet:
    """Columns of a dict or .npz: those asked for, or those whose name says what they are."""
    columns = list(table.keys())
    found = (column(columns, x, INPUTS, "input", where), column(columns, y, TARGETS, "target", where))
    return inputs_and_targets(table[found[0]], table[found[1]], where)


def column(columns: list[str], wanted: str, known: tuple[str, ...], what: str, where: str) -> str:
    """The name of a column."""
    if wanted:
        if wanted not in columns:
            raise DataError(f"{where} has no column {wanted!r}; it has {', '.join(map(str, columns))}")
        return wanted
    hits = [name for name in known if name in columns]
    if not hits:
        raise DataError(
            f"{where} has no column whose name says {what}; it has {', '.join(map(str, columns))}; say which with "
            f"{what} = '…'"
        )
    return hits[0]


def npz(path: Path, x: str = "", y: str = "") -> dict[str, SampleSet]:
    """One set, or a train and a test set (``x_train``, ``y_train``, ``x_test``, ``y_test``)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no whole .npz of plain arrays: {first_line(error)}") from None
    for a, b in (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("X_{}", "y_{}"), ("{}_images", "{}_labels")):
        found = {
            split: inputs_and_targets(table[a.format(name)], table[b.format(name)], f"{path.name} ({name})")
            for split, names in (("train", ("train",)), ("test", ("test", "val", "valid")))
            for name in names
            if a.format(name) in table and b.format(name) in table
        }
        if "train" in found and not x:
            return found
    return {"train": named_columns(table, path.name, x, y)}


def idx(path: Path) -> np.ndarray:
    """An array in the IDX format (MNIST's): magic, shape, numbers; gzip or plain."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole gzip file: {first_line(error)}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES:
        raise DataError(f"{path} is no IDX file: it begins with {raw[:4].hex(' ')}")
    kind, dims = np.dtype(IDX_TYPES[raw[2]]), raw[3]
    if len(raw) < 4 + 4 * dims:
        raise DataError(f"{path} is cut off: its header has {len(raw)} of {4 + 4 * dims} bytes")
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    want = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    body = raw[4 + 4 * dims :]
    if len(body) != want:
        row = max(1, want // max(1, shape[0]))
        raise DataError(
            f"{path} is cut off: {len(body)} of {want} bytes; sample {len(body) // row} of {shape[0]} is not whole"
            if len(body) < want
            else f"{path} has {len(body) - want} bytes more than its header says"
        )
    return np.frombuffer(body, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def idx_sets(folder: Path) -> dict[str, SampleSet]:
    """MNIST's four files: ``train-images-…``, ``train-labels-…``, ``t10k-images-…``, ``t10k-labels-…``."""
    found: dict[str, SampleSet] = {}
    for split, starts in (("train", ("train",)), ("test", ("t10k", "test"))):
        for start in starts:
            pictures = sorted(folder.glob(f"{start}-images*idx*"))
            labels = sorted(folder.glob(f"{start}-labels*idx*"))
            if pictures and labels:
                found[split] = inputs_and_targets(idx(pictures[0]), idx(labels[0]), f"{folder.name} ({split})")
    return found


def dataset(data: Any, where: str = "the dataset") -> SampleSet:
    """A torch Dataset of pairs ``(input, target)`` or dicts: read as it is needed; labels that it lists are used."""
    if not len(data):
        raise DataError(f"{where} holds no sample")
    listed = getattr(data, "targets", getattr(data, "labels", getattr(data, "tensors", (None,))[-1]))
    targets = None
    if listed is not None and not callable(listed) and hasattr(listed, "__len__") and len(listed) == len(data):
        targets, _ = numbered(listed.cpu().numpy() if isinstance(listed, Tensor) else listed, where)
        probe = pair_of(data[0], 0, where)[1]
        if not np.array_equal(np.asarray(targets[0]), np.asarray(sample_array(probe, f"sample 0 of {where}, target"))):
            targets = None  # a target transform: only reading tells
    read = (lambda i: pair_of(data[i], i, where)[0]) if targets is not None else (lambda i: pair_of(data[i], i, where))
    names = tuple(map(str, getattr(data, "classes", ()) or ()))
    return SampleSet(read, targets, len(data), where, names)


def pair_of(item: Any, i: int, where: str) -> tuple[Any, Any]:
    """Input and target of one item."""
    if isinstance(item, Mapping):
        names = [str(k) for k in item]
        return item[column(names, "", INPUTS, "input", where)], item[column(names, "", TARGETS, "target", where)]
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    shown = f"a {type(item).__name__}" + (f" of {len(item)}" if hasattr(item, "__len__") else "")
    raise DataError(f"sample {i} of {where} is {shown}; expected a pair (input, target), or a dict with such names")
