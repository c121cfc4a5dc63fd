"""The engine's units of work: prompts in prefill, and the streams (completions) decoded from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor

from fastsnn_core.moved import renamed
from fastsnn_serve.engine.detokenizer import Detokenizer, Scored
from fastsnn_serve.engine.sampler import Adjustments, Sampler
from fastsnn_text import Sampling, Tokenizer, ends_of

LOG = logging.getLogger("fastsnn.serve")


@attrs.frozen
class SamplingParams:
    """How each completion of a request is sampled and ended.

    `logprobs`: number of alternatives reported per token, or None. `grammar`: constraint on the text
    (`fastsnn_serve.engine.grammar`). `rank`: sum the log-probability, for best-of-n. `spikes`: interval in tokens at
    which spike statistics are recorded (0: never).
    """

    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    adjust: Adjustments = Adjustments()
    grammar: Any = None
    rank: bool = False
    spikes: int = 0


@attrs.frozen
class CompletionDelta:
    """The next part of a completion. The last one has `finish`, "stop" or "length", or an `error`.

    `spikes`: the spike statistics of its token, if requested.
    """

    text: str = ""
    tokens: tuple[Scored, ...] = ()
    finish: str | None = None
    error: BaseException | None = None
    spikes: Any = None


class Prompt:
    """Token ids in prefill; several streams (``n``) may continue from one prompt.

    `echo` is the text to emit before the first token, and `score` asks for the prompt's own log-probabilities.
    """

    def __init__(self, ids: list[int], *, echo: str | None = None, score: int | None = None) -> None:
        self.ids, self.echo, self.score = ids, echo, score
        self.at, self.cached, self.fork = 0, 0, 0  # fork: where prompts diverge, so a snapshot is taken
        self.looked = False  # in the prefix cache
        self.read_at = 0.0  # when its last chunk was read
        self.state: Any = None
        self.logits: Tensor | None = None
        self.scored: list[Scored] = []
        self.users = 0

    @property
    def long(self) -> bool:
        """Are there chunks to read, after others that were?"""
        return not self.ready and self.at > self.cached

    @property
    def ready(self) -> bool:
        """Is the prefill complete?"""
        return self.at == len(self.ids)


class Stream:
    """One completion: its state, random generator and text. `listener` is called with deltas on the engine's thread."""

    def __init__(
        self, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer, listener: Callable[[CompletionDelta], None]
    ) -> None:
        self.prompt, self.params, self.listener = prompt, params, listener
        self.tokenizer = tokenizer
        self.sampler = Sampler(params.sampling, params.adjust, params.grammar, prompt.ids, ends_of(tokenizer))
        self.logprob = 0.0  # sum over generated tokens, if `params.rank`
        self.spikes: Any = None  # of the newest step
        self.lookup: Any = None  # source of draft tokens, if speculating
        self.deadline = float("inf")
        self.detokenizer = Detokenizer(tokenizer, params.stops, len(prompt.echo or ""), prompt.ids)
        self.state: Any = None
        self.logits: Tensor | None = None
        self.ids: list[int] = []
        self.read = 0  # generated tokens the state includes; -1: unknown, after a speculative step
        self.begun = self.cancelled = False
        self.feeding = False  # does it read its prompt in decode steps?
        self.piece: list[int] = []  # what the next step reads
        self.ending: CompletionDelta | None = None
        self.submitted = self.last_token_at = time.perf_counter()
        self.need = 0.0
        prompt.users += 1

    @property
    def tokens(self) -> int:
        """Maximum length: prompt plus max_tokens."""
        return len(self.prompt.ids) + self.params.max_tokens

    @property
    def done(self) -> bool:
        """Has it finished?"""
        return self.ending is not None

    def emit(self, delta: CompletionDelta) -> None:
        """Emit a delta; the final one waits for `end`."""
        if delta.finish is not None or delta.error is not None:
            self.ending = delta
        else:
            self.notify(delta)

    def end(self) -> None:
        """Emit the final delta and release the stream; its slot is free by then for the client's next request."""
        if self.ending is not None:
            self.notify(self.ending)
        self.release()

    def notify(self, delta: CompletionDelta) -> None:
        """Call the listener; if it is gone or fails, only its own stream is cancelled."""
        try:
            self.listener(delta)
        except RuntimeError:  # its event loop is closed
            self.cancelled = True
        except Exception:
            LOG.exception("the listener of a stream failed; the stream is cancelled")
            self.cancelled = True

    def release(self) -> None:
        """Release the tensors; those of the prompt when its last stream releases them."""
        self.state = self.logits = None
        if not self.begun:
            self.release_prompt()

    def release_prompt(self) -> None:
        """Drop this stream's reference to the prompt's state; the last one frees it."""
        self.begun = True
        self.prompt.users -= 1
        if not self.prompt.users:
            self.prompt.state = self.prompt.logits = None


__getattr__ = renamed(__name__, {"Delta": "CompletionDelta", "Piece": "CompletionDelta", "Want": "SamplingParams"})
