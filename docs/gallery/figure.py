"""What the scripts of the gallery share: a small trained model, and where a figure goes."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

OUT = Path(os.environ.get("FASTSNN_GALLERY", "artifacts/gallery"))
LIGHT = "#dfe2e6"
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
    save_both(figure, path)
    print(path, file=sys.stderr)
    return path


def save_both(figure: Figure, path: Path) -> None:
    """`path` for light pages, and beside it .dark.png for dark ones: no ground, light letters, the same colours."""
    figure.savefig(path, dpi=110)

    def is_ink(artist: Artist) -> bool:
        """Is it black or a dark grey?"""
        red, green, blue = to_rgb(artist.get_color())  # type: ignore[attr-defined]
        return max(red, green, blue) < 0.5 and max(red, green, blue) - min(red, green, blue) < 0.1

    for axes in figure.axes:
        axes.tick_params(which="both", colors=LIGHT)
        for spine in axes.spines.values():
            spine.set_edgecolor(LIGHT)
    for artist in [*figure.findobj(Text), *figure.findobj(Line2D)]:
        if is_ink(artist):
            artist.set_color(LIGHT)  # type: ignore[attr-defined]
    figure.savefig(path.with_suffix(".dark.png"), dpi=110, transparent=True)


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
