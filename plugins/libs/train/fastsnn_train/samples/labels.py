"""Targets: class names to numbers, numbers checked against what the network gives, weights of rare classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import ArgumentError
from fastsnn_train.data.documents import DataError
from fastsnn_train.samples.sample_set import IGNORE, SampleSet, refuse_odd

log = logging.getLogger("fastsnn")


def numbered(labels: Sequence[Any] | np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as an array; names become numbers in their sorted order, and are given back, too."""
    try:
        found = np.asarray(labels)
    except ValueError:
        raise DataError(f"the labels of {where} are ragged: sequences of different lengths") from None
    if found.dtype.kind in "US":
        names, numbers = np.unique(found, return_inverse=True)
        return numbers.reshape(found.shape).astype(np.int64), tuple(map(str, names))
    if found.dtype == object:
        odd = next((i for i, label in enumerate(labels) if label is None), None)
        what = f"sample {odd} of {where} has no label" if odd is not None else f"the labels of {where} are no numbers"
        raise DataError(what)
    return found, ()


def renumbered(samples: SampleSet, names: tuple[str, ...]) -> SampleSet:
    """Samples whose classes have names, numbered as in `names`; one that is not there is an error with its sample."""
    if not names or samples.targets is None or samples.classes in ((), names):
        return samples
    table = np.array([names.index(c) if c in names else -1 for c in samples.classes], np.int64)
    labels = np.where(samples.targets == IGNORE, IGNORE, table[np.clip(samples.targets, 0, len(table) - 1)])
    if (labels == -1).any():
        n = int(np.argwhere(labels == -1)[0][0])
        name = samples.classes[int(samples.targets.reshape(len(labels), -1)[n].max())]
        raise DataError(f"{samples.name(n)}: class {name!r} is none of the training data's: {', '.join(names)}")
    return attrs.evolve(samples, targets=labels, classes=names)


def check_classes(samples: SampleSet, classes: int) -> None:
    """Every label in 0 … `classes` - 1 (or -100); the first that is not is an error with its sample; gaps are named."""
    if samples.targets is None:
        return
    rows = samples.targets if samples.index is None else samples.targets[samples.index]
    check_labels(rows, classes, samples.name)
    empty = sorted(set(range(classes)) - set(np.unique(rows).tolist()))
    if empty and len(rows) >= classes:
        names = ", ".join(samples.classes[c] if c < len(samples.classes) else str(c) for c in empty[:8])
        log.warning("%s: no sample of class %s%s", samples.where, names, " …" if len(empty) > 8 else "")


def check_labels(labels: np.ndarray, classes: int, name: Any) -> None:
    """Whole numbers in 0 … `classes` - 1, or -100; `name` says which sample is wrong."""
    if np.issubdtype(labels.dtype, np.floating):
        refuse_odd(labels, lambda n: f"{name(n)}, label")
        whole = labels == np.round(labels)
        if not whole.all():
            n, *_ = np.argwhere(~whole)[0]
            raise DataError(f"{name(int(n))}: label {labels[tuple(np.argwhere(~whole)[0])]} is no whole number")
    bad = ((labels < 0) & (labels != IGNORE)) | (labels >= classes)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        at = f" at step {place[1]}" if len(place) > 1 else ""
        raise DataError(
            f"{name(place[0])}: label {int(labels[place])}{at} is outside 0 … {classes - 1}, the {classes} outputs of "
            "the network"
        )


def weights_of(given: Any, samples: SampleSet, classes: int) -> Tensor | None:
    """One weight per class: none, ``balanced`` (N / (C · n_c)), or numbers."""
    if given is None or (isinstance(given, str) and given == "none"):
        return None
    if isinstance(given, str):
        if given != "balanced":
            raise ArgumentError(f"class_weights is 'none', 'balanced' or a number for each class, got {given!r}")
        if samples.targets is None:
            raise ArgumentError("class_weights = 'balanced' needs labels that can be counted; give numbers")
        rows = samples.targets if samples.index is None else samples.targets[samples.index]
        counts = np.bincount(rows[rows >= 0].astype(np.int64).ravel(), minlength=classes)
        if (counts == 0).any():
            c = int(np.argmin(counts))
            raise DataError(f"class {c} of {samples.where} is empty: it cannot be balanced; give weights as numbers")
        return torch.tensor(counts.sum() / (classes * counts), dtype=torch.float32)
    try:
        found = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(f"class_weights is 'none', 'balanced' or a number for each class, got {given!r}") from None
    if found.shape != (classes,) or not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        raise ArgumentError(f"class_weights needs {classes} numbers of at least 0, got {given!r}")
    return found
