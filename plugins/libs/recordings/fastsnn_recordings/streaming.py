"""A long recording through a network: window after window, the state carried, answers with their times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_recordings.events import EventError, Events
from fastsnn_recordings.files import pieces
from fastsnn_recordings.frames import counted


@torch.no_grad()
def stream(
    model: nn.Module, source: str | Path | Iterable[Events], window: int, size: tuple[int, int], *, at_once: int = 32
) -> Iterator[tuple[int, Tensor]]:
    """``(end of the window in µs, output)`` for every `window` µs of a recording, from its first event on.

    Frames ``[2, H, W]`` go in `at_once` at a time with the network's state carried, so the outputs are those of the
    whole recording at once; memory does not grow with its length. Windows without an event are empty frames. A source
    that is no path is pieces of events in the order of time.

    Errors (`EventError`): a window or `at_once` below 1, and those of `pieces`.
    """
    if window < 1 or at_once < 1:
        raise EventError(f"a window has at least 1 µs, and 1 is read at once; got {window} and {at_once}")
    state: Any = None
    begin, held = None, Events.joined([], size)

    def run(part: Events, start: int, steps: int) -> Iterator[tuple[int, Tensor]]:
        nonlocal state
        x = counted(part, (part.t - start) // window, steps)[None]
        y, state = model(x, state, return_state=True)
        for n in range(steps):
            yield start + (n + 1) * window, y[0, n]

    for piece in pieces(source, size) if isinstance(source, str | Path) else source:
        held = Events.joined([held, piece], size)
        if not len(held):
            continue
        begin = int(held.t[0]) if begin is None else begin
        while (whole := (int(held.t[-1]) - begin) // window) > 0:
            steps = min(at_once, whole)
            inside = held.t < begin + steps * window
            yield from run(held[inside], begin, steps)
            held, begin = held[~inside], begin + steps * window
    if begin is not None and len(held):
        yield from run(held, begin, 1)
