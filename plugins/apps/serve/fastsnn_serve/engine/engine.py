"""The engine: one thread owns the model and gives every running stream a step in each round.

    running = [a, b, c]      one round: one step of a, b and c together; a chunk of a prompt each; then newcomers join

Streams of a W8A model share one pass over its weights (``model.step_many``): sums of whole numbers are exact, so their
bits are those of each stream alone. Streams of a float model take turns: a float batch rounds differently, and rounding
decides spikes. Either way a stream's tokens are exactly those of
``fastsnn_text.generate_ids(model, prompt, max_tokens, sampling, stop=ends, chunk=chunk)``, whoever else is served and
whoever joins or leaves. With linear and windowed attention a stream's state has one size from first token to last.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import torch
from torch import nn

from fastsnn_console import contention
from fastsnn_core.errors import FastSNNError
from fastsnn_core.state import nbytes
from fastsnn_serve.engine.detokenizer import Scored, placed, scores
from fastsnn_serve.engine.prefill_runner import PrefillRunner
from fastsnn_serve.engine.prefix_cache import copied
from fastsnn_serve.engine.state_budget import available, measure
from fastsnn_serve.engine.streams import Delta, Stream
from fastsnn_serve.metrics import Metrics
from fastsnn_text import ends_of, tokenizer_of
from fastsnn_text.generate import CHUNK

LOG = logging.getLogger("fastsnn.serve")


class Refused(Exception):
    """The engine takes no such work. `reason` is "busy", "closed", "too_many" or "too_long"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Engine:
    """Serves `model`: up to `max_streams` at once, `max_waiting` more in a queue; prompts are read `chunk` by `chunk`.

    `cache_bytes` bounds the prefix cache (0: none). `state_bytes` bounds the states of all running streams; by default
    half of the memory that is free at the start. Only softmax layers, whose state grows, come near it: a request whose
    prompt and max_tokens could not fit is refused, others wait until there is room. `max_model_len` bounds prompt and
    max_tokens together; by default it is what the model was made for, where that is known (0: no bound).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_streams: int = 16,
        max_waiting: int = 256,
        chunk: int = CHUNK,
        cache_bytes: int = 256 << 20,
        state_bytes: int | None = None,
        max_model_len: int | None = None,
    ) -> None:
        for name, value, least in (
            ("max_streams", max_streams, 1), ("max_waiting", max_waiting, 0), ("chunk", chunk, 1),
            ("cache_bytes", cache_bytes, 0), ("state_bytes", 0 if state_bytes is None else state_bytes, 0),
            ("max_model_len", 0 if max_model_len is None else max_model_len, 0),
        ):  # fmt: skip
            if value < least:
                raise FastSNNError(f"{name}: expected at least {least}, got {value}")
        self.model, self.tokenizer = model.eval(), tokenizer_of(model)
        self.ends = frozenset(ends_of(self.tokenizer))
        self.device = next(model.parameters()).device
        self.sizes = measure(model, self.device)
        self.max_streams, self.max_waiting, self.chunk = max_streams, max_waiting, chunk
        self.state_bytes = available(self.device) // 2 if state_bytes is None else state_bytes
        self.metrics = Metrics()
        self.runner = PrefillRunner(model, self.device, chunk, cache_bytes, self.metrics)
        self.waiting: deque[Stream] = deque()
        self.running: list[Stream] = []
        self.turns: deque[tuple[list[int], int]] = deque(maxlen=32)  # ended turns whose states are worth keeping
        self.wake = threading.Condition()
        self.thread: threading.Thread | None = None
        self.closing, self.draining, self.failure = False, False, ""
        made_for = getattr(model, "meta", {}).get("max_positions") if max_model_len is None else max_model_len
        self.max_model_len = made_for or None
        for name, help, read in (
            ("fastsnn_requests_running", "Streams being stepped.", lambda: len(self.running)),
            ("fastsnn_requests_waiting", "Streams in the queue.", lambda: len(self.waiting)),
            ("fastsnn_stream_state_bytes", "State of the running streams.", self.state_in_use),
            ("fastsnn_prefix_cache_bytes", "Size of the prefix cache.", lambda: self.runner.cache.nbytes),
        ):
            self.metrics.gauge(name, help, read)

    # -- from any thread -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread (again, after `close`); nothing where it runs: a model has one owner."""
        with self.wake:
            if self.thread is None or not self.thread.is_alive():
                self.closing, self.draining, self.failure = False, False, ""
                self.thread = threading.Thread(target=self.work, name="fastsnn-engine", daemon=True)
                self.thread.start()

    def stop(self) -> None:
        """Ask the thread to end after its current step; every stream gets an error."""
        with self.wake:
            self.closing = True
            self.wake.notify()

    def close(self, timeout: float | None = 30.0) -> None:
        """`stop`, and wait; a thread that has not ended by then stays the model's owner."""
        self.stop()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout)
            if self.thread.is_alive():
                LOG.warning("the engine has not ended after %s s: a step is still running", timeout)
            else:
                self.thread = None

    def drain(self, timeout: float) -> bool:
        """Take no more work, and wait until every stream has ended; False where that takes longer."""
        self.draining = True
        end = time.monotonic() + timeout
        while (self.running or self.waiting) and self.alive and time.monotonic() < end:
            time.sleep(0.02)
        return not (self.running or self.waiting)

    @property
    def alive(self) -> bool:
        """Can work be done? True before the first request, too."""
        return not self.closing and not self.failure

    def state_in_use(self) -> int:
        """Bytes of the running streams' states."""
        return sum(getattr(s.state, "nbytes", None) or nbytes(s.state) for s in tuple(self.running))

    def submit(self, streams: list[Stream]) -> None:
        """Queue all of `streams` or refuse them all."""
        for stream in streams:
            stream.need = self.sizes.need(stream.tokens)
            if self.max_model_len is not None and stream.tokens > self.max_model_len:
                raise Refused(
                    "too_long",
                    f"prompt ({len(stream.prompt.ids)}) and max_tokens ({stream.params.max_tokens}) are "
                    f"{stream.tokens} tokens together; this model was made for {self.max_model_len} (the server's "
                    "max_model_len)",
                )
            if stream.need > self.state_bytes:
                raise Refused(
                    "too_long",
                    f"prompt and max_tokens are {stream.tokens} tokens together; this model's state grows with them, "
                    f"and the memory here holds {self.sizes.room(self.state_bytes)}",
                )
        most = self.max_streams + self.max_waiting
        if len(streams) > most:
            raise Refused("too_many", f"{len(streams)} completions in one request; this server takes {most} at once")
        with self.wake:  # so that nobody can stop between the question and the queue
            if not self.alive or self.draining:
                raise Refused("closed", self.failure or "the server is shutting down")
            self.start()
            if len(self.waiting) + len(self.running) + len(streams) > most:
                raise Refused("busy", f"the queue is full ({most} streams run or wait); try again later")
            self.waiting.extend(streams)
            self.wake.notify()

    def cancel(self, streams: list[Stream]) -> None:
        """Drop streams: waiting ones at once, running ones after their step."""
        with self.wake:
            for stream in streams:
                if not stream.done and not stream.cancelled:
                    stream.cancelled = True
                    self.metrics.add("fastsnn_streams_cancelled_total")
            for stream in (s for s in self.waiting if s.cancelled):
                stream.release()
            self.waiting = deque(s for s in self.waiting if not s.cancelled)
            self.wake.notify()

    # -- the engine's own thread ---------------------------------------------------------------------------------

    def work(self) -> None:
        """Rounds, until closed."""
        try:
            with torch.inference_mode():
                while self.round():
                    contention.tick()
        except BaseException as error:
            self.failure = f"the engine stopped: {type(error).__name__}: {error}"
            raise
        finally:
            with self.wake:
                left, self.running, self.waiting = [*self.running, *self.waiting], [], deque()
            for stream in left:
                stream.emit(Delta(error=Refused("closed", self.failure or "the server is shutting down")))
                stream.end()

    def round(self) -> bool:
        """Let newcomers in and step every stream once; without any, keep an ended turn; False once closed."""
        with self.wake:
            while not (self.closing or self.running or self.waiting or self.turns):
                self.wake.wait()
            if self.closing:
                return False
            self.admit()
            running = tuple(self.running)
        if not running:
            self.keep_turn(*self.turns.popleft())
            return True
        begun = [stream for stream in running if stream.begun and not stream.cancelled]
        others = [stream for stream in running if not stream.begun]
        self.decode(begun)
        for stream in others:
            if not stream.cancelled:
                self.turn(stream)
        for stream in running:
            if stream.done or stream.cancelled:
                with self.wake:
                    self.running.remove(stream)
                stream.end()
        return True

    def admit(self) -> None:
        """First come, first served, while there is a place and memory for the whole stream."""
        while self.waiting and len(self.running) < self.max_streams:
            taken = sum(s.need for s in self.running)
            if self.running and taken + self.waiting[0].need > self.state_bytes:
                return
            self.running.append(self.waiting.popleft())

    def decode(self, streams: list[Stream]) -> None:
        """One token of each; an error ends its stream and no other."""
        try:
            results = self.runner.step_many(streams)
        except Exception as error:  # of a kernel that runs all of them at once
            results = [error] * len(streams)
        for stream, found in zip(streams, results, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                stream.logits, stream.state = found
                self.pick(stream)
            except Exception as error:
                LOG.exception("a stream failed")
                stream.emit(Delta(error=error))

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
            stream.emit(Delta(error=error))

    def begin(self, stream: Stream) -> None:
        """Take over the prompt's end and emit the first token."""
        prompt = stream.prompt
        state = prompt.state if prompt.users == 1 else copied(prompt.state)  # the last one takes it as it is
        stream.state = self.runner.begin(state, stream.tokens) if stream.params.max_tokens > 1 else state
        stream.logits = prompt.logits
        stream.release_prompt()
        if prompt.echo is not None:
            stream.emit(Delta(prompt.echo, placed(self.tokenizer, prompt.scored)))
        if stream.params.max_tokens:
            self.pick(stream)
        else:
            stream.emit(Delta(finish="length"))

    def pick(self, stream: Stream) -> None:
        """Sample a token and emit what it adds to the text."""
        assert stream.logits is not None
        logits, params = stream.logits[0, -1], stream.params
        token = params.sampling.pick(logits, stream.generator)
        scored = None if params.logprobs is None else scores(logits[None], [token], params.logprobs)[0]
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
        text, tokens, stopped = stream.detokenizer.push(token, scored)
        if stopped:
            self.remember(stream)
            stream.emit(Delta(text, tokens, "stop"))
        elif len(stream.ids) == params.max_tokens:
            self.finish(stream, "length", text, tokens)
        elif text or tokens:
            stream.emit(Delta(text, tokens))

    def finish(
        self, stream: Stream, reason: str, text: str = "", tokens: tuple[Scored, ...] = (), end: Scored | None = None
    ) -> None:
        """Say what was held back, too, and the scored end token."""
        self.remember(stream)
        more, others, stopped = stream.detokenizer.close()
        last = () if end is None or stopped else (end._replace(offset=stream.detokenizer.said),)
        stream.emit(Delta(text + more, (*tokens, *others, *last), "stop" if stopped else reason))

    def remember(self, stream: Stream) -> None:
        """Note an ended turn, for when nobody waits."""
        if self.runner.cache.budget and stream.ids:
            self.turns.append((stream.prompt.ids + stream.ids, len(stream.ids)))

    def keep_turn(self, ids: list[int], new: int) -> None:
        """With nobody waiting: put states of an ended turn into the cache, a chunk at a time."""
        try:
            if self.runner.keep_turn(ids, new):
                self.turns.append((ids, new))
        except Exception:
            LOG.exception("an ended turn could not be cached")
