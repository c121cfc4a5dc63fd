"""Exact speculation: likely tokens are drafted, read in one pass, and taken only where the stream takes them anyway.

    draft d_1 … d_k;  the model reads (last token, d_1 … d_k) at once: logits l_0 … l_k, the bits of single steps
    i = 0, 1, …:  x = the stream's own choice under l_i;  x is the next token;  go on while x = d_{i+1}

Each x is chosen by the stream's own random numbers, penalties and grammar, so the text is, token for token, the one
without drafts, sampled or greedy. Where the drafts are left, the state before them is taken up again and what was
accepted is replayed. Only exact models (integer arithmetic) can do it: a float reading of several tokens rounds
differently from single steps.

Drafts come from what the stream has already read (n-grams: "prompt lookup") or from a small model that reads along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import ArgumentError
from fastsnn_serve.engine.prefix_cache import copied

GRAMS = (4, 3, 2)  # tokens of a context that is looked up, the longest first
PATIENCE = 32  # single steps at most after drafts that were of no use


class Lookup:
    """Where each n-gram of a growing text ended last."""

    def __init__(self, ids: list[int]) -> None:
        self.ids: list[int] = []
        self.places: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: list[int]) -> None:
        """Note more tokens; the newest n-gram is noted when it has a successor."""
        for token in ids:
            for n in GRAMS:
                if len(self.ids) >= n:
                    self.places[tuple(self.ids[-n:])] = len(self.ids)
            self.ids.append(token)

    def draft(self, most: int) -> list[int]:
        """What followed the longest known context; nothing where none is known."""
        for n in GRAMS:
            if len(self.ids) >= n and (place := self.places.get(tuple(self.ids[-n:]))) is not None:
                return self.ids[place : place + most]
        return []


class DraftRunner:
    """A draft model that reads a stream along and goes on greedily from there."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.read, self.state = model, 0, None
        self.device = next(model.parameters()).device

    def run(self, ids: list[int], state: Any) -> tuple[Tensor, Any]:
        """The draft model."""
        return self.model(torch.tensor([ids], device=self.device), state, return_state=True, last=True)

    def draft(self, ids: list[int], most: int, chunk: int) -> list[int]:
        """`most` likely tokens after `ids`."""
        logits: Any = None
        while self.read < len(ids):
            piece = ids[self.read : self.read + chunk]
            logits, self.state = self.run(piece, self.state)
            self.read += len(piece)
        out, state = [int(logits[0, -1].argmax())], copied(self.state)
        while len(out) < most:
            logits, state = self.run(out[-1:], state)
            out.append(int(logits[0, -1].argmax()))
        return out


class Drafts:
    """Of one stream: its lookup or its reader, and how many steps to wait after drafts that were of no use."""

    def __init__(self, ids: list[int], model: nn.Module | None) -> None:
        self.ids, self.known = ids, len(ids)
        self.source: Lookup | DraftRunner = Lookup(ids) if model is None else DraftRunner(model)
        self.wait, self.failures = 0, 0

    def propose(self, new: list[int], most: int, chunk: int) -> list[int]:
        """Tokens that may follow the prompt and the answer `new`."""
        if self.wait:
            self.wait -= 1
            return []
        if most < 1:
            return []
        if isinstance(self.source, DraftRunner):
            return self.source.draft(self.ids + new, most, chunk)
        self.source.extend(new[self.known - len(self.ids) :])
        self.known = len(self.ids) + len(new)
        return self.source.draft(most)

    def told(self, accepted: int) -> None:
        """How many of the drafted tokens were taken."""
        self.failures = 0 if accepted else self.failures + 1
        self.wait = 0 if accepted else min(PATIENCE, 1 << self.failures)


def check_draft(model: nn.Module, draft: nn.Module | None, vocab: int, exact: bool, length: int) -> None:
    """Refuse speculation that would change what is written, or drafts in other tokens."""
    if not length:
        if draft is not None:
            raise ArgumentError("a draft model needs speculate, the number of tokens to draft (--speculate 4)")
        return
    if not exact:
        raise ArgumentError(
            "speculate: this model computes in floats, and a float reading of several tokens rounds differently from "
            "single steps; fastsnn export BUNDLE --to w8a OUT.snn makes a model that can"
        )
    size = getattr(getattr(draft, "spec", None), "vocab_size", vocab)
    if size != vocab:
        raise ArgumentError(f"the draft model has {size} tokens, the model {vocab}: they must share a tokenizer")
