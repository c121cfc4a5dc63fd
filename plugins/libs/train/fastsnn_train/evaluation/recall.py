"""Recall by depth and length: a fact is placed in a long text and queried at its end.

Perplexity says little about memory: most tokens can be predicted from nearby ones. Two tasks, as text for the model's
own tokenizer, so that they work with any language model:

- *passkey*: one number in a sentence of its own (Mohtashami & Jaggi 2023, arXiv 2305.16300); all of it must come back.
- *mqar*: several key-value pairs stored together, all queried in another order (multi-query associative recall,
  Arora et al. 2023, arXiv 2312.04927); each answer counts.

An answer is correct if the model's most likely token is the true one at every position, given the true ones before it,
which is the result of greedy decoding.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from fastsnn_console.progress import Progress
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import write_text
from fastsnn_text import Tokenizer, tokenizer_of
from fastsnn_train.evaluation.figures import evaluating

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
CHUNK = 1024
"""Chunk length in tokens, so that memory does not grow with the text."""

Ids = list[int]


@attrs.frozen
class Question:
    """What is stored, and what stands at the end of the text; `answers` are slices of `end` that must come back."""

    fact: Ids
    end: Ids
    answers: tuple[slice, ...]


def passkey(rng: np.random.Generator, encode: Callable[[str], Ids], digits: int = 5) -> Question:
    """One number of `digits` digits."""
    key = "".join(rng.choice(list(string.digits), digits))
    fact = encode(f" The pass key is {key}. Remember it. {key} is the pass key.")
    question, answer = encode(" What is the pass key? The pass key is"), encode(f" {key}")
    return Question(fact, question + answer, (slice(len(question), len(question) + len(answer)),))


def mqar(rng: np.random.Generator, encode: Callable[[str], Ids], pairs: int = 4) -> Question:
    """`pairs` capital letters, each with a digit: stored as ``#K7``, queried as ``?K`` in another order."""
    keys = rng.choice(list(string.ascii_uppercase), pairs, replace=False)
    values = rng.choice(list(string.digits), pairs)
    fact = [i for k, v in zip(keys, values) for i in (*encode("#"), *encode(k), *encode(v))]
    end: Ids = []
    answers = []
    for n in rng.permutation(pairs):
        end += [*encode("?"), *encode(keys[n])]
        value = encode(values[n])
        answers.append(slice(len(end), len(end) + len(value)))
        end += value
    return Question(fact, end, tuple(answers))


TASKS: dict[str, Callable[..., Question]] = {"passkey": passkey, "mqar": mqar}


def task_name(task: str | Callable[..., Question]) -> str:
    """What a task is called in results."""
    return task if isinstance(task, str) else getattr(task, "__name__", "task")


@attrs.frozen
class Recall:
    """Accuracy by length (rows) and depth (columns; 0 is the beginning of the text, 1 just before the question)."""

    task: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    accuracy: tuple[tuple[float, ...], ...]
    samples: int

    def at(self, length: int) -> float:
        """Mean accuracy at a length."""
        row = self.accuracy[self.lengths.index(length)]
        return sum(row) / len(row)

    def table(self) -> dict[str, Any]:
        """Plain data."""
        plain = json.loads(json.dumps(attrs.asdict(self)))  # lists, as JSON has them
        return plain | {"by_length": {str(n): self.at(n) for n in self.lengths}}

    @classmethod
    def of(cls, table: dict[str, Any]) -> Recall:
        """The inverse of `table`."""
        grid = tuple(map(tuple, table["accuracy"]))
        return cls(table["task"], tuple(table["lengths"]), tuple(table["depths"]), grid, table["samples"])

    def __str__(self) -> str:
        head = "  ".join(f"{d:>5.0%}" for d in self.depths)
        rows = [f"{n:>8}  " + "  ".join(f"{a:>5.0%}" for a in row) for n, row in zip(self.lengths, self.accuracy)]
        return "\n".join([f"{self.task:<8}  {head}   depth of the fact; rows: tokens", *rows])


def recall(
    model: nn.Module,
    task: str | Callable[..., Question] = "passkey",
    *,
    lengths: Sequence[int] = (512, 1024, 2048),
    depths: int | Sequence[float] = 5,
    samples: int = 10,
    batch: int = 8,
    filler: str | None = None,
    seed: int = 0,
    quiet: bool = False,
    **options: Any,
) -> Recall:
    """Accuracy of `samples` texts for every length and depth (an integer `depths` is spaced evenly from 0 to 1).

    `filler` is the text around the fact, cut anywhere and repeated; a few plain sentences by default. A length too
    short for fact and question is an error that says how long it must be. `task` may be a function like `passkey`.
    """
    make = TASKS.get(task) if isinstance(task, str) else task
    if make is None:
        raise FastSNNError(f"there is no recall task {task!r}; possible: {', '.join(TASKS)}")
    if not lengths or samples < 1:
        raise FastSNNError("recall needs at least one length and one sample")
    places = tuple(np.linspace(0, 1, depths).tolist()) if isinstance(depths, int) else tuple(map(float, depths))
    if not places or not all(0 <= d <= 1 for d in places):
        raise FastSNNError(f"depths are shares of the text between 0 and 1, got {places}")
    tokenizer = tokenizer_of(model)
    hay = np.array(tokenizer.encode(filler or FILLER), dtype=np.int64)
    table = []
    n_rows = len(lengths) * len(places)
    with evaluating(model), Progress(f"recall, {task_name(task)}", n_rows, "cells", quiet=quiet) as progress:
        for n in lengths:
            row = []
            for d, depth in enumerate(places):
                rng = np.random.default_rng([seed, n, d])
                found = [recall_sample(make, rng, tokenizer, hay, n, depth, options) for _ in range(samples)]
                scores = [
                    s for begin in range(0, samples, batch) for s in recall_score(model, found[begin : begin + batch])
                ]
                row.append(sum(scores) / len(scores))
                progress.step(note=f"{n} tokens")
            table.append(tuple(row))
    return Recall(task_name(task), tuple(lengths), places, tuple(table), samples)


def recall_sample(
    make: Callable[..., Question],
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    hay: np.ndarray,
    length: int,
    depth: float,
    options: dict[str, Any],
) -> tuple[Ids, list[slice]]:
    """A text of `length` tokens, and where its answers are."""
    asked = make(rng, tokenizer.encode, **options)
    start = [] if tokenizer.start is None else [tokenizer.start]
    body = length - len(start) - len(asked.fact) - len(asked.end)
    if body < 0:
        raise FastSNNError(f"{length} tokens are too few for this task: fact and question alone are {length - body}")
    first = int(rng.integers(len(hay)))
    around = np.resize(np.roll(hay, -first), body).tolist()
    place = round(depth * body)
    tokens = [*start, *around[:place], *asked.fact, *around[place:], *asked.end]
    shift = length - len(asked.end)
    return tokens, [slice(a.start + shift, a.stop + shift) for a in asked.answers]


@torch.inference_mode()
def recall_score(model: nn.Module, rows: list[tuple[Ids, list[slice]]]) -> list[float]:
    """Share of right answers of each text; all but the end is read in chunks, with the state carried."""
    tokens = torch.tensor([ids for ids, _ in rows], device=next(model.parameters()).device)
    tail = min(a.start for _, answers in rows for a in answers) - 1
    state = None
    for begin in range(0, tail, CHUNK):
        _, state = model(tokens[:, begin : min(tail, begin + CHUNK)], state, return_state=True, last=True)
    best: Tensor = model(tokens[:, tail:-1], state).argmax(-1)
    right = (best == tokens[:, tail + 1 :]).cpu().numpy()
    return [float(np.mean([right[i, a.start - tail - 1 : a.stop - tail - 1].all() for a in answers]))
            for i, (_, answers) in enumerate(rows)]  # fmt: skip


def draw_heat_map(path: str | Path, grids: dict[str, Recall]) -> Path:
    """The usual heat map, one panel per entry (title to result), as PNG (or what the ending says)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 3.2 * len(grids), 3.4), layout="constrained")
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    image: Any = None
    for ax, (title, grid) in zip(axes, grids.items()):
        image = ax.imshow(np.array(grid.accuracy).T, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        ax.set_xticks(range(len(grid.lengths)), [str(n) for n in grid.lengths], rotation=45)
        ax.set_yticks(range(len(grid.depths)), [f"{d:.0%}" for d in grid.depths])
        ax.set(title=title, xlabel="length, tokens", ylabel="depth of the fact")
        for x, row in enumerate(grid.accuracy):
            for y, value in enumerate(row):
                ax.text(x, y, f"{value:.0%}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=list(axes), label="accuracy")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def write_json(path: str | Path, grids: dict[str, Recall]) -> Path:
    """The same as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({title: grid.table() for title, grid in grids.items()}, indent=1) + "\n")
    return path
