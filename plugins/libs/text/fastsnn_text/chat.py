"""A conversation with a model: history, the model's own template, streamed replies, figures of each turn.

session = ChatSession(model, system="You are brief.")
for piece in session.say("Hello"):
    print(piece, end="")
session.stats()["tokens_per_second"]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import tree_map
from fastsnn_text.chat_template import ChatTemplate, template_of
from fastsnn_text.generate import CHUNK, Sampling, generate_text
from fastsnn_text.tokenizers import tokenizer_of

LOOK = 32  # the newest tokens on which silent bytes are measured


class ChatSession:
    """A conversation. `messages` is the history; `say` streams the reply and appends both turns to it.

    What the model has read is kept at a boundary of `CHUNK` tokens, so that a long history is not read anew in every
    turn, and replies are what the whole history read at once gives, bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        system: str | None = None,
        max_tokens: int = 512,
        sampling: Sampling | None = None,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer_of(model)
        self.template = ChatTemplate(self.tokenizer, template_of(model, self.tokenizer))
        self.system, self.max_tokens = system, max_tokens
        self.sampling = sampling or Sampling(temperature=0.7, top_p=0.95)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation, all but the system prompt."""
        self.messages: list[dict[str, str]] = []
        if self.system:
            self.messages.append({"role": "system", "content": self.system})
        self.ids: list[int] = []  # of the newest prompt
        self.read: list[int] = []  # what `state` has read
        self.state: Any = None
        self.turn: dict[str, float] = {}
        self.total = {"turns": 0, "tokens": 0, "seconds": 0.0}

    def say(self, text: str) -> Iterator[str]:
        """The reply to `text`, piece by piece; one that is broken off stays out of the history, and so does `text`."""
        asked = [*self.messages, {"role": "user", "content": text}]
        ids, began = self.template.ids(asked), time.perf_counter()
        rest = self.advance(ids)
        self.ids = ids
        counted = Counted(self.sampling)
        pieces = []
        settings: dict[str, Any] = {"stop": self.template.stops, "state": tree_map(Tensor.clone, self.state)}
        for piece in generate_text(self.model, rest, self.max_tokens, counted, before=ids, **settings):
            pieces.append(piece)
            yield piece
        done, said = time.perf_counter(), "".join(pieces)
        self.messages = [*asked, {"role": "assistant", "content": said}]
        first = counted.times[0] if counted.times else done
        rate = (len(counted.times) - 1) / (counted.times[-1] - first) if len(counted.times) > 1 else 0.0
        self.turn = {
            "prompt_tokens": len(ids), "read_tokens": len(rest), "tokens": len(counted.times),
            "seconds_to_first": first - began, "tokens_per_second": rate,
        }  # fmt: skip
        self.total["turns"] += 1
        self.total["tokens"] += len(counted.times)
        self.total["seconds"] += done - began

    @torch.inference_mode()
    def advance(self, ids: list[int]) -> list[int]:
        """Read whole chunks of `ids` beyond what is known; gives the rest, which holds at least one token."""
        if ids[: len(self.read)] != self.read or len(self.read) >= len(ids):
            self.read, self.state = [], None
        device = next(self.model.parameters()).device
        while len(ids) - len(self.read) > CHUNK:
            piece = ids[len(self.read) : len(self.read) + CHUNK]
            _, self.state = self.model(torch.tensor([piece], device=device), self.state, return_state=True, last=True)
            self.read += piece
        return ids[len(self.read) :]

    def stats(self) -> dict[str, float]:
        """Figures of the last turn and of all, with the share of weight bytes that the newest tokens need not read."""
        found = dict(self.turn) | {f"all_{key}": value for key, value in self.total.items()}
        if self.ids:
            found["silent_bytes"] = silent_bytes(self.model, self.ids[-LOOK:])
        return found


def chat_prompt(model: nn.Module, text: str, system: str | None = None) -> tuple[list[int], tuple[str, ...]]:
    """``(ids, stop strings)`` of one message, and a system prompt, in the model's chat template."""
    tokenizer = tokenizer_of(model)
    template = ChatTemplate(tokenizer, template_of(model, tokenizer))
    messages = [{"role": "system", "content": system}] if system else []
    return template.ids([*messages, {"role": "user", "content": text}]), template.stops


class Counted(Sampling):
    """Sampling that notes when each token was picked."""

    times: list[float]

    def __init__(self, inner: Sampling) -> None:
        super().__init__(inner.temperature, inner.top_p, inner.top_k, inner.seed)
        object.__setattr__(self, "times", [])

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """As `Sampling` does."""
        token = super().pick(logits, generator)
        self.times.append(time.perf_counter())
        return token


@torch.inference_mode()
def silent_bytes(model: nn.Module, ids: list[int]) -> float:
    """Share of the projections' weight bytes that tokens `ids` need not read, since the inputs before them are silent.

    Counted over every matrix that a token reads whole (embeddings, whose rows are looked up, are none), spikes or not.
    """
    bytes_all, bytes_silent = 0.0, 0.0

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal bytes_all, bytes_silent
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding) or not args:
            return
        size = float(weight.numel() * weight.element_size())
        bytes_all += size
        if isinstance(args[0], SpikeTensor):
            bytes_silent += size * float((args[0].counts == 0).float().mean())

    handles = [module.register_forward_pre_hook(look) for module in model.modules()]
    try:
        model(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return bytes_silent / bytes_all if bytes_all else 0.0
