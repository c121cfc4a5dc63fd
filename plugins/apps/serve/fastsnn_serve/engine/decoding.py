"""What happens to a stream in a round: a chunk of its prompt, its first token, a step or drafted ones, its end."""

from __future__ import annotations

import logging
import time
from typing import Any

from torch import nn

from fastsnn_serve.engine.detokenizer import Scored, scores, token_offsets
from fastsnn_serve.engine.prefill_runner import PrefillRunner
from fastsnn_serve.engine.prefix_cache import copied
from fastsnn_serve.engine.sampler import Stuck
from fastsnn_serve.engine.speculation import Drafts
from fastsnn_serve.engine.streams import CompletionDelta, Stream
from fastsnn_serve.metrics import Metrics
from fastsnn_text import Tokenizer

LOG = logging.getLogger("fastsnn.serve")


class DecodeLoop:
    """Steps streams with a runner and emits their deltas; `speculate` tokens are drafted at a time, 0: none."""

    def __init__(
        self, runner: PrefillRunner, tokenizer: Tokenizer, ends: frozenset[int], metrics: Metrics, turns: Any,
        speculate: int = 0, draft: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.runner, self.tokenizer, self.ends, self.metrics, self.turns = runner, tokenizer, ends, metrics, turns
        self.speculate, self.draft = speculate, draft

    def decode(self, streams: list[Stream]) -> None:
        """One token of each, or several that were drafted; an error ends its stream and no other."""
        drafted = [(stream, self.drafts(stream)) for stream in streams]
        plain = [stream for stream, drafts in drafted if not drafts]
        for stream, drafts in drafted:
            if drafts:
                try:
                    self.accept(stream, drafts)
                except Exception as error:
                    LOG.exception("a stream failed")
                    stream.emit(CompletionDelta(error=error))
        try:
            results = self.runner.step_many(plain)
        except Exception as error:  # of a kernel that runs all of them at once
            results = [error] * len(plain)
        for stream, found in zip(plain, results, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                stream.logits, stream.state = found
                stream.read = len(stream.ids)
                self.pick(stream)
            except Exception as error:
                LOG.exception("a stream failed")
                stream.emit(CompletionDelta(error=error))

    def drafts(self, stream: Stream) -> list[int]:
        """Tokens that may come next, at most as many as the stream may still take after one more."""
        if not self.speculate or stream.params.spikes:
            return []
        if stream.lookup is None:
            stream.lookup = Drafts(stream.prompt.ids, self.draft)
        most = min(self.speculate, stream.params.max_tokens - len(stream.ids) - 1)
        return stream.lookup.propose(stream.ids, most, self.runner.chunk)

    def accept(self, stream: Stream, drafts: list[int]) -> None:
        """Read the drafts in one pass and take tokens as long as they are the stream's own choices."""
        logits, before, after = self.runner.read_drafts(stream, drafts)
        last, begun, stream.read = stream.ids[-1], len(stream.ids), -1
        self.metrics.add("fastsnn_draft_tokens_total", len(drafts))
        for i in range(len(drafts) + 1):
            stream.logits = logits[:, i : i + 1]
            self.pick(stream)
            if stream.done or i == len(drafts) or stream.ids[-1] != drafts[i]:
                break
        stream.lookup.told(i)
        self.metrics.add("fastsnn_draft_tokens_accepted_total", i)
        if stream.done:
            return
        if i == len(drafts):
            stream.state = self.runner.begin(after, stream.tokens)
        else:
            stream.state = self.runner.resume([last, *stream.ids[begun : begun + i]], before, stream.tokens)

    def turn(self, stream: Stream) -> None:
        """One chunk of the stream's prompt; an error ends this stream and no other."""
        prompt = stream.prompt
        try:
            if not prompt.ready:
                self.runner.prefill(prompt, stream.params.max_tokens > 0)
                if not prompt.ready:
                    return
                self.metrics.add("fastsnn_prompt_tokens_total", len(prompt.ids))
                self.metrics.add("fastsnn_cached_prompt_tokens_total", prompt.cached)
            self.begin(stream)
        except Exception as error:
            LOG.exception("a stream failed")
            stream.emit(CompletionDelta(error=error))

    def begin(self, stream: Stream) -> None:
        """Take over the prompt's end and emit the first token."""
        prompt = stream.prompt
        state = prompt.state if prompt.users == 1 else copied(prompt.state)  # the last one takes it as it is
        stream.state = self.runner.begin(state, stream.tokens) if stream.params.max_tokens > 1 else state
        stream.logits = prompt.logits
        stream.release_prompt()
        if prompt.echo is not None:
            stream.emit(CompletionDelta(prompt.echo, token_offsets(self.tokenizer, prompt.scored)))
        if stream.params.max_tokens:
            self.pick(stream)
        else:
            stream.emit(CompletionDelta(finish="length"))

    def pick(self, stream: Stream) -> None:
        """Take a token and emit what it adds to the text."""
        assert stream.logits is not None
        logits, params = stream.logits[0, -1], stream.params
        try:
            token = stream.sampler.pick(logits)
        except Stuck:  # what is asked for leaves no token at all
            self.finish(stream, "stop")
            return
        scored = None if params.logprobs is None else scores(logits[None], [token], params.logprobs)[0]
        if params.rank:
            stream.logprob += float(logits.float().log_softmax(-1)[token])
        if token in self.ends:  # no part of the text, but clients that score look for one more token
            self.finish(stream, "stop", end=scored)
            return
        now = time.perf_counter()
        first = not stream.ids
        self.metrics.observe(
            "fastsnn_time_to_first_token_seconds" if first else "fastsnn_inter_token_seconds",
            now - (stream.submitted if first else stream.last_token_at),
        )
        self.metrics.add("fastsnn_generated_tokens_total")
        stream.last_token_at = now
        stream.ids.append(token)
        spikes, stream.spikes = stream.spikes, None
        text, tokens, stopped = stream.detokenizer.push(token, scored)
        if stopped:
            self.remember(stream)
            stream.emit(CompletionDelta(text, tokens, "stop"))
        elif stream.sampler.complete:
            self.finish(stream, "stop", text, tokens)
        elif len(stream.ids) == params.max_tokens or now > stream.deadline:
            self.finish(stream, "length", text, tokens)
        elif text or tokens or spikes is not None:
            stream.emit(CompletionDelta(text, tokens, spikes=spikes))

    def finish(
        self, stream: Stream, reason: str, text: str = "", tokens: tuple[Scored, ...] = (), end: Scored | None = None
    ) -> None:
        """Say what was held back, too, and the scored end token."""
        self.remember(stream)
        more, others, stopped = stream.detokenizer.close()
        last = () if end is None or stopped else (end._replace(offset=stream.detokenizer.said),)
        stream.emit(CompletionDelta(text + more, (*tokens, *others, *last), "stop" if stopped else reason))

    def remember(self, stream: Stream) -> None:
        """Keep an ended turn for the next one: its state now (exact models), or what to read when nobody waits."""
        if not self.runner.cache.budget or not stream.ids:
            return
        if self.runner.exact and stream.read >= 0:
            self.runner.keep_end(stream)
        else:
            self.turns.append((stream.prompt.ids + stream.ids, len(stream.ids)))

    def keep_turn(self, ids: list[int], new: int) -> None:
        """With nobody waiting: put states of an ended turn into the cache, a chunk at a time."""
        try:
            if self.runner.keep_turn(ids, new):
                self.turns.append((ids, new))
        except Exception:
            LOG.exception("an ended turn could not be cached")
