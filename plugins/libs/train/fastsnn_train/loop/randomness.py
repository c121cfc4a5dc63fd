"""Saving and restoring RNG state, and random streams that are independent of the global generators."""

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
    """State of the global generators of torch (CPU and CUDA), NumPy and Python, as JSON data."""
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
    """Restore the global generators to a state returned by `capture`."""
    torch.set_rng_state(torch.from_numpy(array_of_text(state["torch"], np.uint8)))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, array_of_text(keys, np.uint32), *rest))
    version, inner, following = state["python"]
    random.setstate((version, tuple(array_of_text(inner, np.uint32).tolist()), following))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(array_of_text(state["cuda"], np.uint8)))


def text_of_array(numbers: np.ndarray) -> str:
    """An array's bytes in base64."""
    return base64.b64encode(numbers.tobytes()).decode()


def array_of_text(written: str, kind: Any) -> np.ndarray:
    """The inverse of `text_of_array`."""
    return np.frombuffer(bytearray(base64.b64decode(written)), kind)


class RandomStream:
    """An independent random stream: code inside `draw` uses it, and the global generators are left unchanged."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or capture()

    @contextlib.contextmanager
    def draw(self) -> Iterator[None]:
        """Make the global generators continue this stream while the block runs; restore them afterwards."""
        outer = capture()
        restore(self.state)
        try:
            yield
        finally:
            self.state = capture()
            restore(outer)
