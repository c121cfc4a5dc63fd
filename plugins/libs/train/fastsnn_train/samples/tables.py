"""Samples from tables: CSV and parquet of time series, Hugging Face datasets."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastsnn_core.errors import MissingError
from fastsnn_train.data.documents import DataError
from fastsnn_train.data.sources import first_line
from fastsnn_train.samples.labels import numbered
from fastsnn_train.samples.readers import INPUTS, TARGETS, column
from fastsnn_train.samples.sample_set import SampleSet, sample_array, stacked

SERIES = ("id", "series", "series_id", "sample", "sample_id", "case", "case_id", "sequence_id")
TIME = ("t", "time", "step", "timestamp", "index")


def column_rows(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV, TSV or parquet file."""
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingError("parquet needs pyarrow: pip install pyarrow") from None
        try:
            return parquet.read_table(path).to_pydict()
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no whole parquet file: {first_line(error)}") from None
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is no CSV in UTF-8: {first_line(error)}") from None
    if len(rows) < 2:
        raise DataError(f"{path} holds no sample: {len(rows)} lines")
    head = rows[0]
    for n, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise DataError(f"{path}, line {n} (sample {n - 2}) has {len(row)} cells, the head has {len(head)}")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(head)}


def read_series(path: Path, y: str = "") -> SampleSet:
    """One series a row (``label, v0, v1, …``: ``[T, 1]``), or one step a row (``id, label, a, b, …``: ``[T, D]``)."""
    columns = column_rows(path)
    target = column(list(columns), y, TARGETS, "target", path.name)
    group = next((name for name in SERIES if name in columns), None)
    features = [name for name in columns if name not in (target, group, *TIME)]
    if not features:
        raise DataError(f"{path} has no column of numbers beside {target!r}")
    grid = np.stack([cells(columns[name], name, path) for name in features], 1)
    labels = class_labels(columns[target], path)
    if group is None:
        return SampleSet(grid[:, :, None], labels[0], len(grid), path.name, labels[1])
    order, starts = np.unique(np.asarray(columns[group]), return_index=True)
    by_first = np.argsort(starts, kind="stable")
    ids = np.asarray(columns[group])
    series, wanted = [], []
    for name in order[by_first]:
        rows = np.flatnonzero(ids == name)
        series.append(grid[rows])
        own = labels[0][rows]
        wanted.append(own if (own != own[0]).any() else own[:1])
    return ragged_series(series, wanted, path.name, labels[1])


def ragged_series(
    series: list[np.ndarray], wanted: list[np.ndarray], where: str, classes: tuple[str, ...]
) -> SampleSet:
    """Series ``[T_i, D]``, each with one target or one for every step."""
    if all(len(row) == 1 for row in wanted):
        targets: np.ndarray | None = np.concatenate(wanted)
    else:
        wanted = [np.repeat(row, len(x)) if len(row) == 1 else row for row, x in zip(wanted, series)]
        targets = np.stack(wanted) if len({len(row) for row in wanted}) == 1 else None
    if len({len(x) for x in series}) == 1 and targets is not None:
        return SampleSet(np.stack(series), targets, len(series), where, classes)
    if targets is not None:
        return SampleSet(lambda i: series[i], targets, len(series), where, classes)
    return SampleSet(lambda i: (series[i], wanted[i]), None, len(series), where, classes)


def cells(column_: list[Any], name: str, path: Path) -> np.ndarray:
    """A column as float32."""
    try:
        return np.asarray(column_, dtype=np.float32)
    except (ValueError, TypeError):
        for n, cell in enumerate(column_):
            try:
                float(cell)
            except (ValueError, TypeError):
                what = f"line {n + 2} (sample {n}), column {name!r}"
                raise DataError(f"{path}, {what}: {cell!r} is no number") from None
        raise


def class_labels(column_: list[Any], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Whole numbers, numbers, or names."""
    for n, cell in enumerate(column_):
        if cell is None or cell == "":
            raise DataError(f"{path}, line {n + 2} (sample {n}) has no label")
    for kind in (np.int64, np.float32):
        try:
            return np.asarray(column_).astype(kind), ()
        except (ValueError, TypeError):
            continue
    return numbered([str(cell) for cell in column_], path.name)


def hub_table(data: Any, x: str = "", y: str = "", where: str = "the dataset") -> SampleSet:
    """A ``datasets.Dataset``: images, audio arrays or sequences; labels of a ClassLabel keep their names."""
    names = list(data.column_names)
    inputs, target = column(names, x, INPUTS, "input", where), column(names, y, TARGETS, "target", where)
    labels, classes = numbered(data[target][:] if hasattr(data[target], "__getitem__") else data[target], where)
    classes = tuple(getattr(data.features[target], "names", None) or classes)
    if not len(data):
        raise DataError(f"{where} holds no sample")
    kind = type(data.features[inputs]).__name__
    if kind in ("List", "Sequence", "LargeList", "Array2D", "Array3D"):
        rows = [sample_array(row, f"sample {i} of {where}") for i, row in enumerate(data[inputs])]
        if len({row.shape for row in rows}) > 1:
            return SampleSet(lambda i: rows[i], labels, len(rows), where, classes)
        return SampleSet(stacked(rows, where), labels, len(rows), where, classes)
    return SampleSet(lambda i: cell_value(data[i], inputs), labels, len(data), where, classes)


def cell_value(row: Mapping[str, Any], name: str) -> Any:
    """A cell: an image, an audio array, numbers."""
    found = row[name]
    if hasattr(found, "get_all_samples"):  # an audio decoder
        return found.get_all_samples().data.T
    return found
