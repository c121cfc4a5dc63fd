"""Samples by name: ``builtin:segments``, which needs nothing; a name of the hub, or of a folder of FASTSNN_DATA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastsnn_train.data.documents import DataError
from fastsnn_train.data.sources import first_line, hub_answers, squeeze
from fastsnn_train.samples.sample_set import SampleSet

LIT = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
ENDS = {  # a segment's two ends, in halves of the digit's height and width
    "a": (0, 0, 0, 1), "b": (0, 1, 1, 1), "c": (1, 1, 2, 1), "d": (2, 0, 2, 1), "e": (1, 0, 2, 0), "f": (0, 0, 1, 0),
    "g": (1, 0, 1, 1),
}  # fmt: skip


def builtin(name: str) -> dict[str, SampleSet]:
    """``builtin:segments``: digits of seven segments, 28 × 28, turned, moved, of any width, in noise; 4000 and 1000."""
    if name != "builtin:segments":
        raise DataError(f"no built-in samples {name!r}; there is builtin:segments (and texts: builtin:pydoc)")
    draw, sets = np.random.default_rng(7), {}
    rows, columns = np.mgrid[0:28, 0:28].astype(np.float32)
    for split, n in (("train", 4000), ("test", 1000)):
        labels = np.arange(n) % 10
        turn, size = draw.uniform(-0.35, 0.35, n), draw.uniform(5.0, 8.0, n)
        slim, line = draw.uniform(0.8, 1.3, n), draw.uniform(0.8, 1.8, n)
        down, across = draw.uniform(-3, 3, (2, n)) + 13.5
        images = draw.random((n, 28, 28), dtype=np.float32) * 0.2
        for i, label in enumerate(labels):
            y, x = rows - down[i], columns - across[i]
            y, x = y * np.cos(turn[i]) - x * np.sin(turn[i]), y * np.sin(turn[i]) + x * np.cos(turn[i])
            for segment in LIT[label]:
                a, b, c, d = ENDS[segment]
                top, bottom = (a - 1) * size[i], (c - 1) * size[i]
                left, right = (b - 0.5) * size[i] * slim[i], (d - 0.5) * size[i] * slim[i]
                off = np.hypot(y - np.clip(y, top, bottom), x - np.clip(x, left, right))
                images[i] = np.maximum(images[i], np.clip(line[i] + 0.5 - off, 0, 1))
        sets[split] = SampleSet((images * 255).astype(np.uint8), labels, n, f"segments ({split})")
    return sets


def read_named(name: str, read: Any) -> dict[str, SampleSet]:
    """The hub where it answers, else the folder of FASTSNN_DATA of that name; `read` takes what is found."""
    tried = []
    if hub_answers():
        try:
            from datasets import load_dataset

            path, _, config = name.partition(":")
            return read(load_dataset(path, config or None))
        except ImportError:
            raise DataError(f"{name!r} needs the datasets package: pip install 'fastsnn-train[data]'") from None
        except Exception as error:
            tried.append(f"the hub answered {type(error).__name__}: {first_line(error)}")
    else:
        tried.append("the Hugging Face hub does not answer (no network, or HF_HUB_OFFLINE is set)")
    root = os.environ.get("FASTSNN_DATA")
    if root and Path(root).is_dir():
        for folder in sorted(Path(root).iterdir()):
            if folder.is_dir() and squeeze(folder.name) in {squeeze(part) for part in name.split("/")}:
                return read(folder)
    tried.append(f"FASTSNN_DATA={root} has no folder for it" if root else "FASTSNN_DATA is not set")
    raise DataError(f"no file, folder or dataset {name!r}: " + "; ".join(tried) + ". Give a path, or builtin:segments")
