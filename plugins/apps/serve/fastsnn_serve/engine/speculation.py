"""Speculative decoding with unchanged output: draft tokens are verified in one forward pass.

    draft d_1 … d_k;  one forward pass over (last token, d_1 … d_k): logits l_0 … l_k, bit for bit those of decode steps
    for i = 0, 1, …:  sample x from l_i;  x is the next token;  continue while x = d_{i+1}

Each x is sampled with the stream's own generator, penalties and grammar, so the output is, token for token, the one
without drafts, sampled or greedy. At the first rejected draft the state before the drafts is restored and the accepted
tokens are replayed. Only exact models (integer arithmetic) support this: in floats a pass over several tokens rounds
differently from single decode steps.

Drafts come from n-grams of the stream ("prompt lookup decoding") or from a small draft model.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import ArgumentError
from fastsnn_serve.engine.prefix_cache import copied

GRAMS = (4, 3, 2)  # n-gram lengths looked up, longest first
PATIENCE = 32  # upper bound of the back-off: plain decode steps after rejected drafts


class Lookup:
    """Index of a growing text: the position after the latest occurrence of each n-gram."""

    def __init__(self, ids: list[int]) -> None:
        self.ids: list[int] = []
        self.places: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: list[int]) -> None:
        """Append tokens; an n-gram is indexed once it has a successor."""
        for token in ids:
            for n in GRAMS:
                if len(self.ids) >= n:
                    self.places[tuple(self.ids[-n:])] = len(self.ids)
            self.ids.append(token)

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the latest occurrence of the longest known n-gram; [] without one."""
        for n in GRAMS:
            if len(self.ids) >= n and (place := self.places.get(tuple(self.ids[-n:]))) is not None:
                return self.ids[place : place + most]
        return []


class DraftRunner:
    """A draft model that follows a stream and proposes its greedy continuation."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.read, self.state = model, 0, None
        self.device = next(model.parameters()).device

    def run(self, ids: list[int], state: Any) -> tuple[Tensor, Any]:
        """Forward pass of the draft model: ``(logits [1,1,V], state)``."""
        with getattr(self.model, "meanwhile", nullcontext)():
            return self.model(torch.tensor([ids], device=self.device), state, return_state=True, last=True)

    def draft(self, ids: list[int], most: int, chunk: int) -> list[int]:
        """Greedy continuation of `ids` by `most` tokens; new tokens are prefilled in chunks of `chunk`."""
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
    """Draft source of one stream, with exponential back-off after drafts that were all rejected."""

    def __init__(self, ids: list[int], model: nn.Module | None) -> None:
        self.ids, self.known = ids, len(ids)
        self.source: Lookup | DraftRunner = Lookup(ids) if model is None else DraftRunner(model)
        self.wait, self.failures = 0, 0

    def propose(self, new: list[int], most: int, chunk: int) -> list[int]:
        """At most `most` draft tokens after the prompt and the completion `new`; [] while backing off."""
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
        """Report how many draft tokens were accepted; sets the back-off."""
        self.failures = 0 if accepted else self.failures + 1
        self.wait = 0 if accepted else min(PATIENCE, 1 << self.failures)


def check_draft(model: nn.Module, draft: nn.Module | None, vocab: int, exact: bool, length: int) -> None:
    """Raise `ArgumentError` if speculation would change the output, or the draft model has another vocabulary size."""
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
