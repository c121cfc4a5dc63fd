"""Pictures and files: every figure is drawn from the measured data alone, every file written beside and renamed."""

from __future__ import annotations

import io
import json
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsnn_console.progress import Progress
from fastsnn_core import Scope
from fastsnn_core.files import beside, write_text
from fastsnn_core.subject import Data
from fastsnn_scope.cells import Arrays

FILES = ("index.html", "report.json")
log = logging.getLogger("fastsnn")
STYLE: Any = {
    "figure.facecolor": "#ffffff",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.color": "#222222",
    "axes.labelcolor": "#444444",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


def scope_png(one: Scope, data: Data, dpi: int = 144) -> bytes:
    """PNG of one scope's data."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a token in a script the font lacks
        figure = Figure(figsize=(9.5, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        one.draw(data, figure)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    return target.getvalue()


def pictures(scopes: Sequence[Scope], found: Data) -> dict[str, bytes]:
    """PNG by scope name; a scope whose drawing fails gets an ``error`` in `found` instead."""
    done = {}
    known = [one for one in scopes if "reason" not in found["scopes"][one.name].get("data", {"reason": "failed"})]
    with Progress("drawing", len(known), "pictures") as progress:
        for one in known:
            progress.update(progress.done, one.name)
            panel: dict[str, Any] = found["scopes"][one.name]
            began = time.perf_counter()
            try:
                done[one.name] = scope_png(one, panel["data"])
                panel.pop("error", None)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # as in measuring: a plugin may call sys.exit
                log.warning("scope %s could not be drawn: %s: %s", one.name, type(error).__name__, error)
                panel["error"] = f"draw: {type(error).__name__}: {error}"
            found.setdefault("took", {})[f"drawing {one.name}"] = round(time.perf_counter() - began, 3)
            progress.step(note=one.name)
    return done


def write_report(
    scopes: Sequence[Scope], found: Data, out: Path, arrays: Arrays | None = None, beside_it: Data | None = None
) -> Path:
    """The three sorts of files in the folder `out`; index.html last, pictures of failed scopes removed."""
    from fastsnn_scope.page import page

    drawn = pictures(scopes, found)
    out.mkdir(parents=True, exist_ok=True)
    for one in scopes:
        file = out / f"{one.name}.png"
        if one.name in drawn:
            with beside(file) as scratch:
                scratch.write_bytes(drawn[one.name])
        else:
            file.unlink(missing_ok=True)
    write_text(
        out / "report.json", json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    )
    write_text(out / "index.html", page(found, drawn, arrays, beside_it))
    return out
