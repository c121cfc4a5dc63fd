"""Sampling: penalties, logit bias, grammar mask and min_p, then `fastsnn_text.Sampling` (temperature, top-k, top-p).

    l  the model's logits [V];  n_i  how often token i was generated;  m = max_j l_j after everything above it
    l_i ← l_i / r  where l_i > 0, else l_i · r         token i in the prompt or generated    (repetition penalty r)
    l_i ← l_i − f·n_i − p·[n_i > 0]                    (frequency penalty f, presence penalty p)
    l_i ← l_i + b_i                                    (logit bias)
    l_i ← −∞                                           if the grammar forbids i, and for end tokens before `min_tokens`
    l_i ← −∞                                           if l_i < m + T log(min_p): below min_p of the likeliest

The log-probabilities returned to clients are those of the unmodified logits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from fastsnn_text import Sampling


@attrs.frozen
class Adjustments:
    """Changes to the logits before sampling; the defaults change nothing.

    `forbid_ends`: end tokens are masked until this many tokens are generated (-1: always, "ignore_eos").
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()
    min_p: float = 0.0
    forbid_ends: int = 0


class Stuck(Exception):
    """No token is possible: grammar, bias and forbidden end tokens together mask the whole vocabulary."""


class Sampler:
    """Sampler of one stream: its random generator, token counts and grammar state."""

    def __init__(
        self, sampling: Sampling, adjust: Adjustments, grammar: Any, prompt: Collection[int], ends: Collection[int]
    ) -> None:
        self.sampling, self.adjust, self.generator = sampling, adjust, sampling.generator()
        self.counts: Counter[int] = Counter()
        self.prompt = frozenset(prompt) if adjust.repetition != 1 else frozenset()
        self.ends = sorted(ends)
        self.matcher = None if grammar is None else grammar.matcher()
        self.plain = adjust == Adjustments() and grammar is None

    def pick(self, logits: Tensor) -> int:
        """Sample a token id from logits ``[V]``; raises `Stuck` if every token is masked."""
        if not self.plain:
            logits = torch.from_numpy(self.adjusted(logits.float().cpu().numpy().copy()))
        token = self.sampling.pick(logits, self.generator)
        if not self.plain:
            self.counts[token] += 1
            if self.matcher is not None:
                self.matcher.take(token)
        return token

    @property
    def complete(self) -> bool:
        """Is the grammar complete, so that only an end token could follow?"""
        return self.matcher is not None and self.matcher.complete

    def adjusted(self, logits: Any) -> Any:
        """Apply the adjustments to `logits [V]` in place; raises `Stuck` if every token is masked.

        An array of numpy: a token is some ten operations, for each of which torch would wake its threads.
        """
        adjust = self.adjust
        if adjust.repetition != 1 and (seen := sorted(self.prompt | self.counts.keys())):
            old, by = logits[seen], np.float32(adjust.repetition)
            logits[seen] = np.where(old > 0, old / by, old * by)
        if self.counts and (adjust.presence or adjust.frequency):
            times = np.array([*self.counts.values()], np.float32)
            logits[[*self.counts]] -= np.float32(adjust.frequency) * times + np.float32(adjust.presence)
        for token, value in adjust.bias:
            logits[token] += np.float32(value)
        if self.ends and (adjust.forbid_ends < 0 or self.counts.total() < adjust.forbid_ends):
            logits[self.ends] = -np.inf
        if self.matcher is not None:
            logits[~self.matcher.allowed().numpy()] = -np.inf
        best = logits.max()
        if best == -np.inf:
            raise Stuck
        if adjust.min_p and self.sampling.temperature:
            logits[logits < best + self.sampling.temperature * math.log(adjust.min_p)] = -np.inf
        return logits
