"""A folder of recordings, one subfolder for each class, as a Dataset of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from fastsnn_recordings.events import EventError
from fastsnn_recordings.files import ENDINGS, read_events
from fastsnn_recordings.frames import frames


class EventFolder:
    """``(frames [steps, 2, H, W], class)`` of ``root/class/recording``; `FastSNN.fit` takes it as its dataset."""

    def __init__(self, root: str | Path, steps: int, size: tuple[int, int], kind: str = "") -> None:
        self.root, self.steps, self.size, self.kind = Path(root), steps, size, kind
        if not self.root.is_dir():
            raise EventError(f"{self.root} is no folder")
        folders = sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = [p.name for p in folders]
        found = [sorted(p for p in folder.rglob("*") if p.suffix in ENDINGS) for folder in folders]
        for folder, own in zip(folders, found):
            if not own:
                raise EventError(f"the class folder {folder} holds no recording ({', '.join(ENDINGS)})")
        if not found:
            raise EventError(f"{self.root} holds no class folders with recordings")
        self.paths = [path for own in found for path in own]
        self.targets = np.repeat(np.arange(len(found)), [len(own) for own in found])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        try:
            events = read_events(self.paths[i], self.size, kind=self.kind)
        except EventError as error:
            raise EventError(f"sample {i}: {error}") from None
        return frames(events, self.steps), int(self.targets[i])
