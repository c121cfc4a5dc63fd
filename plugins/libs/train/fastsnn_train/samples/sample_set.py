"""`SampleSet`: samples by index, checked: every fault names the sample."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from fastsnn_console.progress import Progress
from fastsnn_train.data.documents import DataError

PIECE = 1 << 24
"""Numbers looked at together."""
IGNORE = -100
"""A label that counts for nothing: what stands under padding of a labelled sequence."""


@attrs.define(eq=False)
class SampleSet:
    """`count` samples: ``inputs(i)`` and ``target(i)`` by index, or whole arrays where they are in memory.

    `inputs` is an array ``[N, …]`` (uint8 stands for value / 255) or a function of an index; `targets` an array
    ``[N]``, ``[N, C]`` or ``[N, T]``, or None where only reading a sample tells (then `inputs` gives pairs).
    """

    inputs: Any
    targets: np.ndarray | None
    count: int
    where: str = "sample"
    classes: tuple[str, ...] = ()
    index: np.ndarray | None = None  # which samples of the source these are, where they are a part of it

    def __len__(self) -> int:
        return self.count

    def part(self, index: Sequence[int] | np.ndarray) -> SampleSet:
        """Some of these samples."""
        own = np.asarray(index, dtype=np.int64)
        return attrs.evolve(self, count=len(own), index=own if self.index is None else self.index[own])

    def of(self, i: int) -> int:
        """The number of a sample in its source."""
        return int(i if self.index is None else self.index[i])

    def name(self, i: int) -> str:
        """``sample 17 of train.csv``."""
        source = f" of {self.where}" if self.where != "sample" else ""
        return f"sample {self.of(i)}{source}"

    def item(self, i: int) -> tuple[Any, Any]:
        """Input and target of one sample, as they are."""
        n = self.of(i)
        if not callable(self.inputs):
            return self.inputs[n], None if self.targets is None else self.targets[n]
        found = self.inputs(n)
        return (found, self.targets[n]) if self.targets is not None else found

    def batch(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, …]`` float32 and targets ``[B, …]`` of some samples; ragged shapes are an error."""
        if not callable(self.inputs) and self.targets is not None:
            rows = np.array([self.of(i) for i in index])
            return scaled_values(self.inputs[rows]), torch.from_numpy(np.ascontiguousarray(self.targets[rows]))
        found, wanted = [], []
        for i in index:
            x, y = self.item(i)
            found.append(scaled_values(sample_array(x, self.name(i))))
            wanted.append(torch.from_numpy(np.array(sample_array(y, f"{self.name(i)}, target"))))
            for what, rows_ in (("", found), (", target", wanted)):
                if rows_[-1].shape != rows_[0].shape:
                    raise DataError(
                        f"{self.name(i)}{what} has the shape {tuple(rows_[-1].shape)}, {self.name(index[0])} has "
                        f"{tuple(rows_[0].shape)}; samples of a batch must be alike (transforms = ['pad'] fills time "
                        "series up to the longest)"
                    )
        return torch.stack(found), torch.stack(wanted)

    def checked(self, quiet: bool = False) -> SampleSet:
        """These samples; `DataError` names the first with a number that is none. Lazy ones are looked at when read."""
        if not self.count:
            raise DataError(f"{self.where} holds no sample")
        for name, table in (("", self.inputs), (", target", self.targets)):
            if not isinstance(table, np.ndarray) or not np.issubdtype(table.dtype, np.floating):
                continue
            rows = max(1, PIECE // max(1, table[:1].size))
            with Progress("checking samples", -(-len(table) // rows), quiet=quiet) as progress:
                for begin in range(0, len(table), rows):
                    refuse_odd(table[begin : begin + rows], lambda n, b=begin, what=name: f"sample {b + n}{what}")  # type: ignore[misc]
                    progress.step()
        return self

    def fingerprint(self) -> dict[str, Any]:
        """How many, of what, and a checksum of the first and last targets."""
        found: dict[str, Any] = {"samples": self.count}
        if self.targets is not None:
            rows = self.targets if self.index is None else self.targets[self.index]
            found["crc"] = zlib.crc32(np.ascontiguousarray(rows[:100_000]).data)
        return found


def refuse_odd(table: Any, name: Callable[[int], str]) -> None:
    """`DataError` where a row ``[N, …]`` holds NaN or infinity; says which row, and where in it."""
    table = np.asarray(table)
    bad = ~np.isfinite(table)
    if bad.any():
        n, *place = (int(i) for i in np.argwhere(bad)[0])
        what = float(table[(n, *place)])
        raise DataError(f"{name(n)} holds {what} at {place}" if place else f"{name(n)} is {what}")


def sample_array(value: Any, name: str) -> np.ndarray:
    """One sample's input or target as an array of numbers."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # a picture of PIL
        return np.asarray(value if value.mode in ("L", "RGB") else value.convert("RGB"))
    if isinstance(value, dict) and "array" in value:  # an audio column
        value = value["array"]
    try:
        found = np.asarray(value)
    except ValueError:  # rows of different lengths
        found = np.empty(0, object)
    if found.dtype == object or not (np.issubdtype(found.dtype, np.number) or found.dtype == bool):
        if isinstance(value, list | tuple) and value and all(hasattr(row, "__len__") for row in value):
            sizes = sorted({len(row) for row in value})
            if len(sizes) > 1:
                raise DataError(f"{name} is ragged: its rows have {sizes[0]} to {sizes[-1]} numbers")
        raise DataError(f"{name} must be numbers, got {type(value).__name__} {str(value)[:40]!r}")
    return found


def scaled_values(table: np.ndarray) -> Tensor:
    """float32; bytes become value / 255."""
    found = torch.from_numpy(np.array(table))  # a copy: a picture's own memory may not be written to
    if found.dtype == torch.uint8:
        return found.float() / 255
    return found.float()


def stacked(rows: Iterator[Any] | Sequence[Any], where: str) -> np.ndarray:
    """Samples as one array; the first of another shape is an error that names it."""
    found = [sample_array(row, f"sample {i} of {where}") for i, row in enumerate(rows)]
    for i, row in enumerate(found):
        if row.shape != found[0].shape:
            raise DataError(
                f"sample {i} of {where} has the shape {row.shape}, sample 0 has {found[0].shape}; samples must be "
                "alike (transforms = ['pad'] fills time series up to the longest)"
            )
    return np.stack(found) if found else np.empty((0,))
