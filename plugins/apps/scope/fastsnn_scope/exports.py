"""A report as other programs read it: CSV of the sites, SVG of the map, a trace for Perfetto."""

from __future__ import annotations

import csv as table
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from fastsnn_console import targets
from fastsnn_core.errors import FastSNNError, MissingError
from fastsnn_core.files import write_text
from fastsnn_core.subject import Data

COLUMNS = ("site", "name", "neuron", "channels", "silent_fraction", "spikes_per_channel", "weight_bytes",
           "unread_bytes_per_column", "us", "dead", "saturated", "outlier", "constant")  # fmt: skip
STOPS = ((254, 232, 56), (188, 175, 111), (124, 123, 120), (65, 77, 107), (0, 34, 78))
LEVELS = 24


def write_file(path: str | Path, text: str) -> Path:
    """Write `text` beside `path` and rename."""
    path = targets.file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def mapped(found: Data) -> Data:
    """The map, or an error where the model has none."""
    cells: Data = found["cells"]
    if "sites" not in cells:
        raise FastSNNError(f"there is no map to write: {cells.get('reason', '')}")
    return cells


def csv(found: Data) -> str:
    """One row per site; bytes per column (token), µs per decoded token."""
    cells, out = mapped(found), io.StringIO()
    layers = (found.get("speed") or {}).get("layer_us", {})
    writer = table.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for r in cells["sites"]:
        silent = r["channels"] - sum(r["active"]) / max(1, cells["columns"])
        kinds = {p["kind"]: p["count"] for p in r["channel_problems"]}
        row: dict[str, Any] = {key: r[key] for key in COLUMNS[:7]}
        row |= {"unread_bytes_per_column": round(r["row_bytes"] * silent, 3)}
        row |= {"us": round(sum(layers.get(n, 0.0) for n in r["readers"]), 2)}
        writer.writerow(row | {key: kinds.get(key, 0) for key in COLUMNS[9:]})
    return out.getvalue()


def colour(level: int) -> str:
    """Of a silent share in `LEVELS` steps; dark is silent."""
    at = 4 * level / (LEVELS - 1)
    i = min(3, int(at))
    return "#" + "".join(f"{round(a + (b - a) * (at - i)):02x}" for a, b in zip(STOPS[i], STOPS[i + 1]))


def svg(found: Data) -> str:
    """The map as rectangles; neighbours of one shade are one."""
    cells = mapped(found)
    columns, left, tall = cells["columns"], 230, 10
    wide = max(1.0, min(8.0, 960 / max(1, columns)))
    body = []
    for y, r in enumerate(cells["sites"]):
        body.append(f'<text x="{left - 6}" y="{y * tall + 8}" text-anchor="end">{escape(r["site"])}</text>')
        levels = [round((1 - a / r["channels"]) * (LEVELS - 1)) for a in r["active"]]
        start = 0
        for x in range(1, columns + 1):
            if x == columns or levels[x] != levels[start]:
                body.append(
                    f'<rect x="{left + start * wide:.1f}" y="{y * tall}" width="{(x - start) * wide:.1f}" '
                    f'height="{tall}" fill="{colour(levels[start])}"/>'
                )
                start = x
    size = f'width="{left + columns * wide:.0f}" height="{tall * len(cells["sites"])}"'
    title = (
        f"<title>Silent channels of {len(cells['sites'])} sites over {columns} {cells['axis']}s; dark: silent</title>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="8" role="img">{title}'
        f"{''.join(body)}</svg>\n"
    )


def tensorboard(found: Data, folder: str | Path) -> Path:
    """Event files in `folder`: of every site the silent fraction, spikes per channel and unread bytes, and the tiles.

    They stand at the number of steps that the model was trained for, so checkpoints of one run make a curve.
    Raises MissingError without the package tensorboard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingError(f"--tensorboard needs {error.name}: pip install tensorboard") from None
    cells, folder = mapped(found), targets.folder(folder)
    done = [r for r in found["model"]["meta"].get("milestones", []) if r.get("what") == "fit"]
    step = sum(int(r.get("steps") or 0) for r in done)
    with SummaryWriter(str(folder)) as writer:
        for r in cells["sites"]:
            silent = r["channels"] - sum(r["active"]) / max(1, cells["columns"])
            writer.add_scalar(f"silent_fraction/{r['site']}", r["silent_fraction"], step)
            writer.add_scalar(f"spikes_per_channel/{r['site']}", r["spikes_per_channel"], step)
            writer.add_scalar(f"unread_bytes/{r['site']}", r["row_bytes"] * silent, step)
        for tile in found["saved"]:
            if tile["number"] is not None:
                writer.add_scalar(f"saved/{tile['key']}", tile["number"], step)
    return folder


def perfetto(found: Data, timeline: list[Data]) -> str:
    """JSON in the Chrome trace format: a slice for each layer of each timed token; bytes not read as a counter."""
    if not timeline:
        raise FastSNNError("nothing was timed, so there is no trace to write")
    name = found["model"].get("name") or found["model"]["kind"]
    events: list[Data] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"fastsnn {name}"}}]
    for e in timeline:
        thread = 1 if "calls" in e["args"] else 2
        events.append({"ph": "X", "pid": 1, "tid": thread, "cat": "layer", **e})
        if "bytes_unread" in e["args"]:
            unread = {"bytes": e["args"]["bytes_unread"]}
            events.append({"ph": "C", "pid": 1, "name": "bytes not read", "ts": e["ts"], "args": unread})
    for tid, said in ((1, f"{found['speed']['unit']}s"), (2, "layers")):
        events.append({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": said}})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"
