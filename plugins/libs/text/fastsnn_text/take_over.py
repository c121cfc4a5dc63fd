"""A long running stream moves into the fused step while the model itself goes on answering."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

LONG = 256
"""Tokens from which on a stream moves in a thread of its own: a state of 88 MB in new memory takes half a second."""


class TakeOver(threading.Thread):
    """``fast(state, wait=False)`` beside the tokens that the model answers; `missed` are those that came since then.

    It gives way to them as ``model.in_background`` says, where the model has that.
    """

    def __init__(self, model: Any, state: Any) -> None:
        super().__init__(name="fastsnn-take-over", daemon=True)
        self.fast, self.state, self.threads = model.fast, state, torch.get_num_threads()
        self.giving_way: Any = getattr(model, "in_background", nullcontext)
        self.missed, self.read = list[int](), 0  # of which so many have been read
        self.found: Any = None
        self.logits: Tensor | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """The stream and most of what it missed, None where there is no fused step yet, or what went wrong."""
        torch.get_num_threads()  # torch's first look in a thread takes what another one set last, which may be less
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode(), self.giving_way():
                self.found = self.fast(self.state, wait=False)
                while self.found is not None and len(self.missed) > self.read + 1:
                    self.read_missed()
        except Exception as error:
            self.error = error

    def read_missed(self) -> None:
        """The stream reads what came since it last did."""
        some = self.missed[self.read :]
        if some:
            self.logits = self.found.read(some)
            self.read += len(some)

    def caught_up(self) -> tuple[Any, Tensor | None]:
        """The stream and the logits after all that it missed; ``(None, None)`` where there is no fused step."""
        self.join()
        if self.error is not None:
            raise self.error
        if self.found is not None:
            self.read_missed()
        return self.found, self.logits
