"""What the scripts of the gallery share: a small trained model, and where a figure goes."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OUT = Path(os.environ.get("FASTSNN_GALLERY", "artifacts/gallery"))
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#888888"


def new(width: float = 7.0, height: float = 3.6) -> Figure:
    """A figure without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, script: str) -> Path:
    """Write the figure under the script's name; for each axis no frame on top and right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{Path(script).stem}.png"
    figure.savefig(path, dpi=110)
    print(path, file=sys.stderr)
    return path


@cache
def trained(steps: int = 40, **how: Any) -> Any:
    """A language model of 60,000 parameters after `steps` steps on Python's documentation; the same each time."""
    import torch

    from fastsnn import FastSNN

    torch.manual_seed(0)
    model = FastSNN.build("snn-tiny", d_model=48, d_ff=96, n_layers=2, n_heads=2)
    settings = {"seq_len": 96, "max_steps": steps, "batch_size": 8, "lr": 6e-3, "quiet": True} | how
    FastSNN.fit(model, "builtin:pydoc", **settings)
    return model.eval()
