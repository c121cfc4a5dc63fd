"""Incremental detokenization: stop strings, characters that span tokens, and each token's offset in the text."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastsnn_text import TextStream, Tokenizer
from fastsnn_text.generate import cut, overlap

FLOOR = -9999.0  # reported for a probability of zero: JSON has no infinity


class Scored(NamedTuple):
    """A token, its log-probability (None for a prompt's first), the top alternatives, its character offset."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int = 0


def scores(logits: Tensor, tokens: list[int], top: int) -> list[Scored]:
    """Log-probability of each token under its row of logits ``[N,V]``, and the `top` likeliest, before temperature."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(top, logprobs.shape[-1]))
    chosen = logprobs.gather(-1, best.indices.new_tensor(tokens)[:, None])[:, 0].tolist()
    alternatives = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Scored(token, finite_or_floor(value), tuple(zip(ids, map(finite_or_floor, values), strict=True)))
        for token, value, (ids, values) in zip(tokens, chosen, alternatives, strict=True)
    ]


def finite_or_floor(value: float) -> float:
    """`value`, or `FLOOR` if it is not finite."""
    return value if math.isfinite(value) else FLOOR


class Detokenizer:
    """Streams text, holding back only what could be the start of a stop string.

    Offsets start at `begun`, the length of an echoed prompt. For the same tokens and stop strings the text is that of
    `fastsnn_text.generate_text`.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: tuple[str, ...], begun: int = 0, before: Sequence[int] = ()
    ) -> None:
        self.stream, self.stops = TextStream(tokenizer, before), stops
        self.held, self.said = "", begun
        self.tokens: deque[Scored] = deque()

    def push(self, token: int, scored: Scored | None) -> tuple[str, tuple[Scored, ...], bool]:
        """Add a token: ``(new text, its tokens, stop string found)``; `scored` is None without log-probabilities."""
        if scored is not None:
            self.tokens.append(scored._replace(offset=self.said + len(self.held)))
        held, stopped = cut(self.held + self.stream.push(token), self.stops)
        if stopped:
            return *self.release(held, ""), True
        safe = len(held) - overlap(held, self.stops)
        return *self.release(held[:safe], held[safe:]), False

    def close(self) -> tuple[str, tuple[Scored, ...], bool]:
        """Return the text held back, after the last token."""
        held, stopped = cut(self.held + self.stream.close(), self.stops)
        text, tokens = self.release(held, "")
        if not stopped:
            tokens, self.tokens = (*tokens, *self.tokens), deque()
        return text, tokens, stopped

    def release(self, text: str, held: str) -> tuple[str, tuple[Scored, ...]]:
        """Release `text` and hold `held` back; returns the text and the tokens that start in released text."""
        self.said, self.held = self.said + len(text), held
        out = []
        while self.tokens and self.tokens[0].offset < self.said:
            out.append(self.tokens.popleft())
        return text, tuple(out)


def token_offsets(tokenizer: Tokenizer, tokens: list[Scored]) -> tuple[Scored, ...]:
    """A prompt's tokens with their character offsets in its text."""
    stream, at, out = TextStream(tokenizer), 0, []
    for scored in tokens:
        out.append(scored._replace(offset=at))
        at += len(stream.push(scored.token))
    return tuple(out)
