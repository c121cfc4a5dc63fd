"""One round of a stream: a prefill chunk, the first token, a decode step (plain or speculative), and its end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from torch import nn

from fastsnn_serve.engine.detokenizer import Scored, scores, token_offsets
from fastsnn_serve.engine.prefill_runner import TOGETHER, PrefillRunner
from fastsnn_serve.engine.prefix_cache import copied
from fastsnn_serve.engine.sampler import Stuck
from fastsnn_serve.engine.speculation import Drafts
from fastsnn_serve.engine.streams import CompletionDelta, Prompt, Stream
from fastsnn_serve.metrics import Metrics
from fastsnn_text import Tokenizer

LOG = logging.getLogger("fastsnn.serve")


class DecodeLoop:
    """Runs decode steps of streams and emits their deltas; `speculate` tokens are drafted per step (0: none)."""

    def __init__(
        self, runner: PrefillRunner, tokenizer: Tokenizer, ends: frozenset[int], metrics: Metrics, turns: Any,
        speculate: int = 0, draft: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.runner, self.tokenizer, self.ends, self.metrics, self.turns = runner, tokenizer, ends, metrics, turns
        self.speculate, self.draft = speculate, draft
        self.owed = 0.0  # seconds of decode steps before a long prompt's next chunk

    def decode(self, streams: list[Stream]) -> None:
        """One decode step of every stream, speculative where it has drafts; an error ends only its own stream."""
        began = time.perf_counter()
        drafted = [(stream, self.drafts(stream)) for stream in streams]
        plain = self.runner.share([stream for stream, drafts in drafted if not drafts])
        for stream, drafts in drafted:
            if drafts:
                try:
                    self.accept(stream, drafts)
                except Exception as error:
                    LOG.exception("a stream failed")
                    stream.emit(CompletionDelta(error=error))
        try:
            results = self.runner.step_many(plain)
        except Exception as error:  # from the kernel that runs the whole batch
            results = [error] * len(plain)
        for stream, found in zip(plain, results, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                stream.logits, stream.state = found
                if stream.feeding:
                    self.fed(stream)
                    continue
                stream.read = len(stream.ids)
                self.pick(stream)
            except Exception as error:
                LOG.exception("a stream failed")
                stream.emit(CompletionDelta(error=error))

        self.owed -= time.perf_counter() - began

    def prefill(self, streams: list[Stream], beside: int) -> None:
        """`read` for every stream; but while `beside` others decode, later chunks of long prompts take turns, and each
        waits until decode steps have taken as long as the one before.
        """
        long = [stream for stream in streams if beside and stream.prompt.long]
        self.read([stream for stream in streams if stream not in long], beside)
        if long and self.owed <= 0:
            stream, began = min(long, key=lambda stream: stream.prompt.read_at), time.perf_counter()
            self.read([stream], beside)
            self.owed = time.perf_counter() - began

    def drafts(self, stream: Stream) -> list[int]:
        """Draft tokens for the next step: at most `speculate`, and one fewer than `max_tokens` leaves."""
        if not self.speculate or stream.params.spikes or stream.feeding:
            return []
        if stream.lookup is None:
            stream.lookup = Drafts(stream.prompt.ids, self.draft)
        most = min(self.speculate, stream.params.max_tokens - len(stream.ids) - 1)
        return stream.lookup.propose(stream.ids, most, self.runner.chunk)

    def accept(self, stream: Stream, drafts: list[int]) -> None:
        """Verify the drafts in one forward pass: accept tokens while the stream's own sampler picks the same ones."""
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

    def read(self, streams: list[Stream], beside: int) -> None:
        """Prefill a chunk of these streams' prompts, or let steps read a short rest; those who are ready decode.

        Exact models read several prompts in one pass, as many as `TOGETHER` says (one chunk, while `beside` others
        decode), those first that have waited longest; the others wait for the next round.
        """
        ready, short, rest = list[Stream](), list[Stream](), dict[int, list[Stream]]()  # rest: by prompt
        for stream in streams:
            prompt = stream.prompt
            if not prompt.ready:
                with self.failing([stream]):
                    self.runner.look_up(prompt)
                    if prompt.ready:
                        self.count(prompt)
            if stream.done:
                continue
            (ready if prompt.ready else short if self.runner.feeds(stream) else rest.setdefault(id(prompt), [])).append(
                stream
            )
        for stream in self.runner.feed(short):
            rest[id(stream.prompt)] = [stream]
        waiting = sorted(rest.values(), key=lambda some: some[0].prompt.read_at)
        packed = [some for some in waiting if self.runner.packs and some[0].prompt.score is None]
        for some in waiting:
            if some not in packed:
                self.read_one(some)
        self.read_together(packed, self.runner.chunk if beside else TOGETHER)
        for some in waiting:
            if some[0].prompt.ready:
                self.count(some[0].prompt)
                ready += [stream for stream in some if not stream.done]
        self.begin_all(ready)

    def read_one(self, streams: list[Stream]) -> None:
        """The next chunk of the prompt that these streams share."""
        prompt = streams[0].prompt
        with self.failing(streams):
            self.runner.prefill(prompt, any(stream.params.max_tokens > 0 for stream in streams))
        prompt.read_at = time.perf_counter()

    def read_together(self, waiting: list[list[Stream]], most: int) -> None:
        """The next chunks of several prompts, the first one whatever its length, and `most` tokens with the others."""
        size, now = 0, list[list[Stream]]()
        for some in waiting:
            size += self.runner.chunk_end(some[0].prompt) - some[0].prompt.at
            if now and size > most:
                break
            now.append(some)
        if len(now) < 2:
            for some in now:
                self.read_one(some)
            return
        try:
            self.runner.prefill_together([some[0].prompt for some in now])
        except Exception:  # whose fault it is shows one by one
            for some in now:
                self.read_one(some)
        for some in now:
            some[0].prompt.read_at = time.perf_counter()

    @contextlib.contextmanager
    def failing(self, streams: list[Stream]) -> Iterator[None]:
        """An error in here ends these streams, and no other."""
        try:
            yield
        except Exception as error:
            LOG.exception("a stream failed")
            for stream in streams:
                stream.emit(CompletionDelta(error=error))

    def fed(self, stream: Stream) -> None:
        """A step has read a piece of the stream's prompt; behind the last one it decodes."""
        self.runner.fed(stream)
        if stream.prompt.ready:
            self.count(stream.prompt)
            stream.logits, stream.feeding = stream.prompt.logits, False
            stream.release_prompt()
            self.begin(stream)

    def count(self, prompt: Prompt) -> None:
        """A prompt has been read."""
        self.metrics.add("fastsnn_prompt_tokens_total", len(prompt.ids))
        self.metrics.add("fastsnn_cached_prompt_tokens_total", prompt.cached)

    def begin_all(self, streams: list[Stream]) -> None:
        """Start decoding from the states after the prompts."""
        more = [stream for stream in streams if stream.params.max_tokens > 1]
        for stream in streams:
            prompt = stream.prompt
            stream.state = prompt.state if prompt.users == 1 else copied(prompt.state)  # the last user needs no copy
            stream.logits = prompt.logits
            stream.release_prompt()
        try:
            states = self.runner.begin_all([s.state for s in more], [s.tokens for s in more]) if more else []
            for stream, state in zip(more, states, strict=True):
                stream.state = state
        except Exception:  # the same, one by one
            for stream in more:
                with self.failing([stream]):
                    stream.state = self.runner.begin(stream.state, stream.tokens)
        for stream in streams:
            if not stream.done:
                with self.failing([stream]):
                    self.begin(stream)

    def begin(self, stream: Stream) -> None:
        """Emit what comes before the first token, and that."""
        prompt = stream.prompt
        if prompt.echo is not None:
            stream.emit(CompletionDelta(prompt.echo, token_offsets(self.tokenizer, prompt.scored)))
        if stream.params.max_tokens:
            self.pick(stream)
        else:
            stream.emit(CompletionDelta(finish="length"))

    def pick(self, stream: Stream) -> None:
        """Sample a token and emit the text it adds."""
        assert stream.logits is not None
        logits, params = stream.logits[0, -1], stream.params
        try:
            token = stream.sampler.pick(logits)
        except Stuck:  # grammar and logit bias leave no possible token
            self.finish(stream, "stop")
            return
        scored = None if params.logprobs is None else scores(logits[None], [token], params.logprobs)[0]
        if params.rank:
            stream.logprob += float(logits.float().log_softmax(-1)[token])
        if token in self.ends:  # not part of the text, but its log-probability is reported
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
        """Emit the text held back for stop strings, the scored end token, and the finish reason."""
        self.remember(stream)
        more, others, stopped = stream.detokenizer.close()
        last = () if end is None or stopped else (end._replace(offset=stream.detokenizer.said),)
        stream.emit(CompletionDelta(text + more, (*tokens, *others, *last), "stop" if stopped else reason))

    def remember(self, stream: Stream) -> None:
        """Cache a finished turn: its state now (exact models), else queue its tokens for a prefill when idle."""
        if not self.runner.cache.budget or not stream.ids:
            return
        if self.runner.exact and stream.read >= 0:
            self.runner.keep_end(stream)
        else:
            self.turns.append((stream.prompt.ids + stream.ids, len(stream.ids)))

    def keep_turn(self) -> None:
        """When idle: prefill one chunk of the oldest finished turn; it stays listed until all of it is cached."""
        more = False
        try:
            more = self.runner.keep_turn(*self.turns[0])
        except Exception:
            LOG.exception("an ended turn could not be cached")
        if not more:
            self.turns.popleft()
