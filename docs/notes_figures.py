"""One figure for every section of benchmarks/NOTES.md, drawn from the numbers that stand in the section.

    python docs/notes_figures.py FOLDER      writes FOLDER/01.png … in the order of the sections

A figure reads a table of its section (`columns` of it, the first number of each cell), or `numbers`, texts that the
section holds word for word. So no figure can say what its section does not: a number that is gone is an error.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from attrs import frozen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent / "gallery"))
from figure import save_both

ROOT = Path(__file__).resolve().parents[1]
NOTES = ROOT / "benchmarks" / "NOTES.md"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#999999")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@frozen
class Picture:
    """What a section's figure shows: `says` in one sentence, the unit of its axis, and where its numbers are.

    `columns` of table number `table` are drawn: as bars, one group a row; with `lines` one line a row, over the heads
    of the columns. `rows` leaves rows out. `base` is where bars begin, `log` a logarithmic axis.
    """

    says: str
    unit: str
    columns: tuple[int, ...] = ()
    table: int = 0
    rows: tuple[int, ...] = ()
    numbers: tuple[tuple[str, str], ...] = ()
    lines: bool = False
    log: bool = False
    base: float = 0.0


PICTURES: dict[str, Picture] = {
    "Starting kernels": Picture(
        "Filling 32 MiB: new memory costs more than any arithmetic on it.",
        "ms",
        numbers=(("new memory", "8–45 ms"), ("huge pages", "2.3 ms"), ("touched before", "0.5 ms")),
    ),
    "`lif_scan`": Picture("A leaky neuron over 512 steps, forward and backward.", "ms, less is better", (1,)),
    "One row of spikes": Picture(
        "One row of spikes by events, beside dense products.", "times as fast", (3, 4, 5), log=True
    ),
    "Several rows": Picture("Products of several rows.", "ms, less is better", (1, 4, 5), log=True),
    "Runtimes and W8A": Picture("What INT8 leaves of the weights' bytes.", "of float32", (2,)),
    "Quality: why models": Picture("Held-out loss after 60 steps: how weights begin decides.", "nats a byte", (1, 2)),
    "Kill and resume": Picture(
        "Every killed run ended with the weights of the run that was left alone.",
        "count",
        numbers=(("runs", "20 runs"), ("kills", "25 SIGKILLs"), ("ended with equal weights", "20 of 20")),
    ),
    "Converting language models": Picture(
        "Perplexity over that of the dense model: calibrated thresholds halve what is lost.",
        "times the dense perplexity",
        (2, 3),
        base=1.0,
    ),
    "Converting image networks": Picture("Accuracy against steps.", "% right", (2, 3, 4, 5), lines=True),
    "Quality beside the dense": Picture("Held-out loss of models trained alike.", "nats a byte", (1,)),
    "Step time beside": Picture("A training step beside the dense transformer's.", "times the dense step", (2,)),
    "Memory of a training step\n": Picture(
        "Memory per token against length.", "KiB a token", (1, 2, 3, 4, 5), lines=True
    ),
    "Memory of a training step over time": Picture(
        "What a step holds for its backward pass, against the number of time steps.",
        "MB",
        (1, 2, 3, 4, 5),
        lines=True,
        log=True,
    ),
    "Neuron cells": Picture("Neuron cells, forward and backward.", "ms, less is better", (1, 2, 3)),
    "Decoding: one token": Picture("One token through a W8A decoder, beside rivals.", "times as fast", (3, 4)),
    "Prefill": Picture("A prompt, beside softmax attention.", "seconds, less is better", (1, 2)),
    "Cold start": Picture(
        "Seconds until a token comes, with and without compiled kernels.", "seconds", (1, 2, 3), log=True
    ),
    "Longer context": Picture(
        "What is recalled after the context was extended.", "% recalled", (5, 6, 7, 8), lines=True
    ),
    "Two processes": Picture(
        "Two threads or two processes beside one.",
        "times as fast",
        numbers=(("two threads", "1.50 x"), ("ddp", "1.93 x"), ("sequence", "1.61 x"), ("fsdp", "1.51 x")),
    ),
    "SmolLM2-135M": Picture(
        "Weight bytes that may stay unread at 1 % more perplexity.", "% of the bytes", (1,), rows=(1, 2, 3, 4)
    ),
    "Contended cores": Picture("Tokens a second beside busy neighbours.", "tokens a second", (1, 2, 3)),
    "Probes": Picture(
        "Looking at spikes: before and after hooks on modules that make none were left out.",
        "times the bare model",
        (1, 2, 3, 4),
    ),
    "Batched steps": Picture(
        "Streams in one pass, beside one stream alone.", "times the tokens of one stream", (1, 2, 3, 4, 5), lines=True
    ),
    "The server": Picture("SmolLM2-135M served, beside llama-server.", "tokens a second", (1, 4)),
    "Four bits": Picture(
        "SmolLM2-135M: blocks in 4 bits lose nothing more than counts do, the head does.",
        "perplexity",
        numbers=(
            ("dense", "25.494"),
            ("counts", "26.614"),
            ("blocks in 4 bits", "26.614"),
            ("head in 4 bits, too", "27.490"),
        ),
        base=25.0,
    ),
    "The frontier on": Picture("SmolLM2-135M, tokens a second.", "tokens a second", (4,)),
    "Linear attention in ONNX": Picture(
        "512 tokens in ONNX Runtime: Scan, and its own operator.",
        "ms, less is better",
        numbers=(
            ("gla, Scan", "106.7"),
            ("gla, operator", "50.2"),
            ("linear, Scan", "91.8"),
            ("linear, operator", "48.5"),
        ),
    ),
    "Before and after": Picture("A decoded token before and after the moves.", "ms", (1, 3)),
    "Files on the way": Picture("Files that a reader meets on the way.", "files", (1, 4)),
}


def sections(text: str) -> list[str]:
    """Of NOTES, each with its heading as the first line."""
    return re.split(r"^## ", text, flags=re.MULTILINE)[1:]


def picture_of(section: str) -> Picture:
    """The one whose key the section begins with; KeyError names a section without."""
    for start, found in PICTURES.items():
        if section.startswith(start):
            return found
    raise KeyError(f"docs/notes_figures.py has no figure for the section {section.partition(chr(10))[0]!r}")


def tables(section: str) -> list[list[list[str]]]:
    """Every table as rows of cells, the head first."""
    found = []
    for block in re.findall(r"(?:^\|[ -].*\n)+", section, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        if len(rows) > 2 and set("".join(rows[1])) <= set("-: "):
            found.append([rows[0], *rows[2:]])
    return found


def number(cell: str) -> float | None:
    """The first number of a cell."""
    found = NUMBER.search(cell.replace("**", ""))
    return float(found[0]) if found else None


def figures_of(section: str) -> tuple[list[str], list[str], list[list[float | None]]]:
    """``(labels, series, values[series][label])`` of a section's figure."""
    made = picture_of(section)
    if made.numbers:
        flat = " ".join(section.split())
        if gone := [text for _, text in made.numbers if text not in flat]:
            raise ValueError(f"{section.partition(chr(10))[0]}: {gone[0]!r} does not stand there any more")
        return [label for label, _ in made.numbers], [made.unit], [[number(text) for _, text in made.numbers]]
    head, *rows = tables(section)[made.table]
    rows = [row for n, row in enumerate(rows) if not made.rows or n in made.rows]
    heads, names = [head[c] for c in made.columns], [plain(row[0]) for row in rows]
    cells = [[number(row[c]) if c < len(row) else None for c in made.columns] for row in rows]
    if made.lines:
        return heads, names, cells
    return names, [plain(h) for h in heads], [list(column) for column in zip(*cells)]


def plain(text: str) -> str:
    """Without marks of Markdown, no longer than a label can be."""
    text = re.sub(r"[`*]", "", text)
    return text if len(text) <= 44 else text[:43] + "…"


def draw(section: str, path: Path) -> None:
    """A section's figure."""
    made = picture_of(section)
    labels, series, values = figures_of(section)
    height = 3.4 if made.lines else 1.2 + 0.24 * len(labels) * max(1, 0.8 * len(series))
    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for n, (name, row) in enumerate(zip(series, values)):
        colour = COLOURS[n % len(COLOURS)]
        if made.lines:
            known = [(i, v) for i, v in enumerate(row) if v is not None]
            axes.plot(*zip(*known), marker="o", color=colour, label=name)
        else:
            thick = 0.8 / len(series)
            known = [(i + (n - (len(series) - 1) / 2) * thick, v) for i, v in enumerate(row) if v is not None]
            where, long = zip(*known)
            drawn = axes.barh(where, [v - made.base for v in long], thick, left=made.base, color=colour, label=name)
            axes.bar_label(drawn, labels=[f"{v:g}" for v in long], padding=3, fontsize=8)
    if made.lines:
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylabel(made.unit)
        axes.set_yscale("log" if made.log else "linear")
    else:
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel(made.unit)
        axes.set_xscale("log" if made.log else "linear")
        axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=2 if made.lines else 3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_both(figure, path)


def main(folder: Path) -> None:
    """All figures."""
    for n, section in enumerate(sections(NOTES.read_text(encoding="utf-8")), 1):
        draw(section, folder / f"{n:02d}.png")
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
