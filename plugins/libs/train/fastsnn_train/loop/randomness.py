"""The random state of a process as plain data, and random streams that do not disturb each other."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture() -> State:
    """torch's, NumPy's and Python's global generators, as JSON data."""
    kind, keys, place, has, gauss = np.random.get_state()
    version, inner, following = random.getstate()
    found = {
        "torch": text_of_array(torch.get_rng_state().numpy()),
        "numpy": [kind, text_of_array(np.asarray(keys, np.uint32)), int(place), int(has), float(gauss)],
        "python": [version, text_of_array(np.array(inner, np.uint32)), following],
    }
    if torch.cuda.is_available():
        found["cuda"] = text_of_array(torch.cuda.get_rng_state().numpy())
    return found


def restore(state: State) -> None:
    """Put the generators back where `capture` found them."""
    torch.set_rng_state(torch.from_numpy(array_of_text(state["torch"], np.uint8)))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, array_of_text(keys, np.uint32), *rest))
    version, inner, following = state["python"]
    random.setstate((version, tuple(array_of_text(inner, np.uint32).tolist()), following))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(array_of_text(state["cuda"], np.uint8)))


def text_of_array(numbers: np.ndarray) -> str:
    """An array's bytes."""
    return base64.b64encode(numbers.tobytes()).decode()


def array_of_text(written: str, kind: Any) -> np.ndarray:
    """The inverse of `text_of_array`."""
    return np.frombuffer(bytearray(base64.b64decode(written)), kind)


class RandomStream:
    """A random stream of its own: what runs inside `draw` takes its numbers from here, and leaves the rest alone."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or capture()

    @contextlib.contextmanager
    def draw(self) -> Iterator[None]:
        """The global generators are this stream's while the block runs."""
        outer = capture()
        restore(self.state)
        try:
            yield
        finally:
            self.state = capture()
            restore(outer)
