"""Gradients for work that needs them, whatever mode its caller is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def gradients_on() -> Iterator[None]:
    """``@gradients_on()`` over a function that trains or calibrates: ``torch.no_grad`` and ``inference_mode`` of the
    caller end at its door."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        yield
