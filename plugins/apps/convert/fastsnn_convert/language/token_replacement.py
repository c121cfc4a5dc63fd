"""Token-replacement augmentation: a share of the tokens is replaced by samples of the teacher, against overfitting."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn


@attrs.define(eq=False)
class TokenReplacement:
    """Pieces of a text; a share of their tokens is replaced, by other ones at every reading.

    A text of up to `SHORT` tokens will be read many times, so the teacher reads it once, in windows of `length` as they
    are needed, and draws `DRAWS` words for every place; a reading takes one of them. For a longer text it draws them
    while the piece is read. What is read follows from `seed`, the places and the generator alone: a run that was cut
    off goes on with the same text.
    """

    teacher: nn.Module
    ids: Tensor
    length: int
    share: float
    temperature: float
    seed: int = 0
    known: set[int] = attrs.field(factory=set)
    words: Tensor = attrs.field(factory=lambda: torch.empty(0, 0))

    SHORT = 2**17
    DRAWS = 32

    def pieces(self, places: Tensor, generator: torch.Generator) -> Tensor:
        """``[N, length]``, beginning at `places` ``[N]``."""
        at = places[:, None] + torch.arange(self.length)
        found = self.ids[at]
        if not self.share:
            return found
        swap = torch.rand(found.shape, generator=generator) < self.share
        swap[:, 0] = False  # nothing is said before the first
        if len(self.ids) > self.SHORT:
            found[swap] = self.say(found, swap, 1, generator)[:, 0]
            return found
        self.read(at[swap])
        which = torch.randint(0, self.DRAWS, (int(swap.sum()),), generator=generator)
        found[swap] = self.words[at[swap], which].long()
        return found

    def read(self, places: Tensor) -> None:
        """Draw words for all windows that have one of these places, once."""
        if not self.known:
            self.words = self.ids[:, None].int().repeat(1, self.DRAWS)
        for number in set((places // self.length).tolist()) - self.known:
            begin = number * self.length
            window = self.ids[None, begin : begin + self.length]
            where = torch.ones_like(window, dtype=torch.bool)
            where[:, 0] = False
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self.words[begin + 1 : begin + window.shape[1]] = self.say(window, where, self.DRAWS, generator).int()
            self.known.add(number)

    @torch.no_grad()
    def say(self, pieces: Tensor, where: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """What the teacher would say ``[n, draws]`` at the places of `pieces` ``[N,T]`` that are `where`, n in all."""
        device = next(self.teacher.parameters()).device
        if not where.any() or pieces.shape[1] < 2:
            return torch.empty(0, draws, dtype=torch.long)
        said = self.teacher(pieces[:, :-1].to(device))[where[:, 1:].to(device)]
        probs = (said.float() / self.temperature).softmax(-1).cpu()
        return torch.multinomial(probs, draws, replacement=True, generator=generator)
