"""Tokens in, text out: stop strings, characters that span tokens, and each token's place in the text."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastsnn_text import TextStream, Tokenizer
from fastsnn_text.generate import cut, overlap

FLOOR = -9999.0  # stands for a probability of zero: JSON knows no infinity


class Scored(NamedTuple):
    """A token, its log-probability (None for a prompt's first), the likeliest ones there, and its place in the text."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int = 0


def scores(logits: Tensor, tokens: list[int], top: int) -> list[Scored]:
    """Each token under its row of logits ``[N,V]``, with the `top` likeliest beside it, before any temperature."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(top, logprobs.shape[-1]))
    chosen = logprobs.gather(-1, best.indices.new_tensor(tokens)[:, None])[:, 0].tolist()
    alternatives = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Scored(token, finite_or_floor(value), tuple(zip(ids, map(finite_or_floor, values), strict=True)))
        for token, value, (ids, values) in zip(tokens, chosen, alternatives, strict=True)
    ]


def finite_or_floor(value: float) -> float:
    """`value`, or the floor where it is no finite number."""
    return value if math.isfinite(value) else FLOOR


class Detokenizer:
    """Releases text as soon as no stop string can begin in it; `begun` characters (an echoed prompt) stand before it.

    It gives what `fastsnn_text.generate_text` gives: with the same tokens and stop strings, the same text.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: tuple[str, ...], begun: int = 0, before: Sequence[int] = ()
    ) -> None:
        self.stream, self.stops = TextStream(tokenizer, before), stops
        self.held, self.said = "", begun
        self.tokens: deque[Scored] = deque()

    def push(self, token: int, scored: Scored | None) -> tuple[str, tuple[Scored, ...], bool]:
        """``(text, its tokens, whether a stop string ended it)``; `scored` is None where nobody asked."""
        if scored is not None:
            self.tokens.append(scored._replace(offset=self.said + len(self.held)))
        held, stopped = cut(self.held + self.stream.push(token), self.stops)
        if stopped:
            return *self.release(held, ""), True
        safe = len(held) - overlap(held, self.stops)
        return *self.release(held[:safe], held[safe:]), False

    def close(self) -> tuple[str, tuple[Scored, ...], bool]:
        """What was held back, once no more tokens come."""
        held, stopped = cut(self.held + self.stream.close(), self.stops)
        text, tokens = self.release(held, "")
        if not stopped:
            tokens, self.tokens = (*tokens, *self.tokens), deque()
        return text, tokens, stopped

    def release(self, text: str, held: str) -> tuple[str, tuple[Scored, ...]]:
        """Release `text`, hold `held` back: the text with the tokens that begin in what has been released."""
        self.said, self.held = self.said + len(text), held
        out = []
        while self.tokens and self.tokens[0].offset < self.said:
            out.append(self.tokens.popleft())
        return text, tuple(out)


def token_offsets(tokenizer: Tokenizer, tokens: list[Scored]) -> tuple[Scored, ...]:
    """A prompt's tokens with their places in its text."""
    stream, at, out = TextStream(tokenizer), 0, []
    for scored in tokens:
        out.append(scored._replace(offset=at))
        at += len(stream.push(scored.token))
    return tuple(out)
