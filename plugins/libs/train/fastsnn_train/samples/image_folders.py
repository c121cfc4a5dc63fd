"""Samples from a folder of images: ``class/picture.png``, or ``train/class/picture.png`` and ``test/class/…``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastsnn_core.errors import MissingError
from fastsnn_train.data.documents import DataError
from fastsnn_train.data.sources import first_line
from fastsnn_train.samples.sample_set import SampleSet

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation", "dev")}


def image_folders(folder: Path) -> dict[str, SampleSet]:
    """One set, or train and test; every class has the same number in both."""
    found = {}
    for split, names in SPLITS.items():
        for name in names:
            if (folder / name).is_dir() and split not in found:
                found[split] = folder / name
    if "train" not in found:
        found = {"train": folder}
    classes = sorted({p.name for root in found.values() for p in subfolders(root)})
    return {split: image_folder(root, classes) for split, root in found.items()}


def subfolders(folder: Path) -> list[Path]:
    """Class folders, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def holds_images(folder: Path) -> bool:
    """Are there pictures in subfolders?"""
    return any(p.suffix.lower() in ENDINGS for sub in subfolders(folder) for p in sub.rglob("*"))


def image_folder(folder: Path, classes: list[str]) -> SampleSet:
    """Pictures of every class folder; an empty one is an error."""
    paths: list[Path] = []
    labels: list[int] = []
    for n, name in enumerate(classes):
        own = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in ENDINGS)
        if not own:
            raise DataError(f"the class folder {folder / name} holds no image; remove it, or fill it")
        paths += own
        labels += [n] * len(own)
    if not paths:
        raise DataError(f"{folder} holds no class folders with images")
    return SampleSet(
        lambda i: image_pixels(paths[i], i), np.array(labels, np.int64), len(paths), folder.name, tuple(classes)
    )


def image_pixels(path: Path, i: int) -> Any:
    """Its pixels ``[H, W]`` or ``[H, W, 3]``."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingError("images need Pillow: pip install pillow") from None
    try:
        with Image.open(path) as image:
            return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"sample {i} ({path}) is no whole picture: {first_line(error)}") from None
