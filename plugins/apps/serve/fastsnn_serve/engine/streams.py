"""What the engine works on: a prompt being read, and the streams that go on from its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor

from fastsnn_serve.engine.detokenizer import Scored, Writer
from fastsnn_text import Sampling, Tokenizer


@attrs.frozen
class Want:
    """What a request asks of each of its streams; `logprobs` is how many alternatives beside each token, or None."""

    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...] = ()
    logprobs: int | None = None


@attrs.frozen
class Piece:
    """What a stream says next. `finish` is "stop" or "length" at its end; `error` ends it too."""

    text: str = ""
    tokens: tuple[Scored, ...] = ()
    finish: str | None = None
    error: BaseException | None = None


class Prompt:
    """Token ids on their way through the model; several streams (``n``) may go on from one reading.

    `echo` is the text to say before the first token, and `score` asks for the prompt's own log-probabilities.
    """

    def __init__(self, ids: list[int], *, echo: str | None = None, score: int | None = None) -> None:
        self.ids, self.echo, self.score = ids, echo, score
        self.at, self.cached = 0, 0
        self.state: Any = None
        self.logits: Tensor | None = None
        self.scored: list[Scored] = []
        self.users = 0

    @property
    def ready(self) -> bool:
        """Has all of it been read?"""
        return self.at == len(self.ids)


class Stream:
    """One completion: its own state, random stream and text. `emit` gets its pieces, from the engine's thread."""

    def __init__(self, prompt: Prompt, want: Want, tokenizer: Tokenizer, emit: Callable[[Piece], None]) -> None:
        self.prompt, self.want, self.emit = prompt, want, emit
        self.tokenizer = tokenizer
        self.generator = want.sampling.generator()
        self.writer = Writer(tokenizer, want.stops, len(prompt.echo or ""), prompt.ids)
        self.state: Any = None
        self.logits: Tensor | None = None
        self.ids: list[int] = []
        self.begun = self.cancelled = False
        self.ending: Piece | None = None
        self.submitted = self.spoke = time.perf_counter()
        self.need = 0.0
        prompt.users += 1

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.prompt.ids) + self.want.max_tokens

    @property
    def done(self) -> bool:
        """Has it said its last?"""
        return self.ending is not None

    def say(self, piece: Piece) -> None:
        """Hand a piece over; the last one waits for `end`."""
        if piece.finish is not None or piece.error is not None:
            self.ending = piece
        else:
            self.tell(piece)

    def end(self) -> None:
        """Hand the last piece over and let go: by then the stream's place is free, so a client may come right back."""
        if self.ending is not None:
            self.tell(self.ending)
        self.release()

    def tell(self, piece: Piece) -> None:
        """A listener that is gone cancels the stream."""
        try:
            self.emit(piece)
        except RuntimeError:  # its event loop is closed
            self.cancelled = True

    def release(self) -> None:
        """Let go of tensors, the prompt's too once no stream needs them."""
        self.state = self.logits = None
        if not self.begun:
            self.leave()

    def leave(self) -> None:
        """This stream needs the prompt's state no more."""
        self.begun = True
        self.prompt.users -= 1
        if not self.prompt.users:
            self.prompt.state = self.prompt.logits = None
