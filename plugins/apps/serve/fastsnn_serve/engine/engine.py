"""The engine: one thread owns the model and gives every running stream a step in each round.

    running = [a, b, c]      one round: one step of a, b and c together; a chunk of a prompt each; then newcomers join

Streams of a W8A model share one pass over its weights (``model.step_many``): sums of whole numbers are exact, so their
bits are those of each stream alone. Streams of a float model take turns: a float batch rounds differently, and rounding
decides spikes. Either way a stream's tokens are exactly those of
``fastsnn_text.generate_ids(model, prompt, max_tokens, sampling, stop=ends, chunk=chunk)``, whoever else is served and
whoever joins or leaves. With linear and windowed attention a stream's state has one size from first token to last.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import Any

import torch
from torch import nn

from fastsnn_console import contention
from fastsnn_console.typed import typed
from fastsnn_core.errors import FastSNNError
from fastsnn_core.state import nbytes
from fastsnn_serve.engine.decoding import DecodeLoop
from fastsnn_serve.engine.prefill_runner import PrefillRunner
from fastsnn_serve.engine.speculation import check_draft
from fastsnn_serve.engine.state_budget import available, measure_state
from fastsnn_serve.engine.streams import CompletionDelta, Stream
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
    `max_seconds` bounds the time from a request to its end (0: no bound): what is written by then is the answer, what
    still waits is refused. `speculate` tokens are drafted and read at once, from n-grams of the stream or by the model
    `draft`; what is written stays the same.
    """

    @typed
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
        max_seconds: float = 0.0,
        speculate: int = 0,
        draft: nn.Module | None = None,
    ) -> None:
        for name, value, least in (
            ("max_seconds", max_seconds, 0), ("speculate", speculate, 0),
            ("max_streams", max_streams, 1), ("max_waiting", max_waiting, 0), ("chunk", chunk, 1),
            ("cache_bytes", cache_bytes, 0), ("state_bytes", 0 if state_bytes is None else state_bytes, 0),
            ("max_model_len", 0 if max_model_len is None else max_model_len, 0),
        ):  # fmt: skip
            if value < least:
                raise FastSNNError(f"{name}: expected at least {least}, got {value}")
        self.model, self.tokenizer = model.eval(), tokenizer_of(model)
        self.ends = frozenset(ends_of(self.tokenizer))
        self.device = next(model.parameters()).device
        self.sizes = measure_state(model, self.device)
        self.max_streams, self.max_waiting, self.chunk = max_streams, max_waiting, chunk
        self.state_bytes = available(self.device) // 2 if state_bytes is None else state_bytes
        self.metrics = Metrics()
        self.runner = PrefillRunner(model, self.device, chunk, cache_bytes, self.metrics)
        check_draft(model, draft, self.sizes.vocab, self.runner.exact, speculate)
        self.max_seconds = max_seconds
        self.waiting: deque[Stream] = deque()
        self.jobs: deque[tuple[Iterator[Any], Future[Any]]] = deque()
        self.running: list[Stream] = []
        self.turns: deque[tuple[list[int], int]] = deque(maxlen=32)  # ended turns whose states are worth keeping
        draft = None if draft is None else draft.eval()
        self.decoder = DecodeLoop(self.runner, self.tokenizer, self.ends, self.metrics, self.turns, speculate, draft)
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

    def refuse_closed(self) -> None:
        """Refuse where no work is taken any more."""
        if not self.alive or self.draining:
            raise Refused("closed", self.failure or "the server is shutting down")

    def state_in_use(self) -> int:
        """Bytes of the running streams' states."""
        return sum(getattr(s.state, "nbytes", None) or nbytes(s.state) for s in tuple(self.running))

    def check_length(self, tokens: int, asks: str) -> None:
        """Refuse what is longer than the model was made for."""
        if self.max_model_len is not None and tokens > self.max_model_len:
            says = f"{asks} are {tokens} tokens together; this model was made for {self.max_model_len}"
            raise Refused("too_long", f"{says} (the server's max_model_len)")

    def submit(self, streams: list[Stream]) -> None:
        """Queue all of `streams` or refuse them all."""
        for stream in streams:
            stream.need = self.sizes.need(stream.tokens)
            asks = f"prompt ({len(stream.prompt.ids)}) and max_tokens ({stream.params.max_tokens})"
            self.check_length(stream.tokens, asks)
            if stream.need > self.state_bytes:
                raise Refused(
                    "too_long",
                    f"prompt and max_tokens are {stream.tokens} tokens together; this model's state grows with them, "
                    f"and the memory here holds {self.sizes.room(self.state_bytes)}",
                )
        most = self.max_streams + self.max_waiting
        if len(streams) > most:
            raise Refused("too_many", f"{len(streams)} completions in one request; this server takes {most} at once")
        self.refuse_closed()
        self.start()
        with self.wake:  # asked again where nobody can stop between the question and the queue
            self.refuse_closed()
            if len(self.waiting) + len(self.running) + len(streams) > most:
                raise Refused("busy", f"the queue is full ({most} streams run or wait); try again later")
            for stream in streams if self.max_seconds else ():
                stream.deadline = time.perf_counter() + self.max_seconds
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

    def ask(self, work: Callable[[PrefillRunner], Iterator[Any]]) -> Future[Any]:
        """Have the engine's thread run `work` between rounds, one step of the iterator at a time: its last value.

        A future that is cancelled ends it.
        """
        future: Future[Any] = Future()
        self.refuse_closed()
        self.start()
        with self.wake:
            self.refuse_closed()
            if len(self.jobs) >= max(1, self.max_waiting):
                raise Refused("busy", "the queue is full; try again later")
            self.jobs.append((work(self.runner), future))
            self.wake.notify()
        return future

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
                jobs, self.jobs = self.jobs, deque()
            for _, future in jobs:
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(Refused("closed", self.failure or "the server is shutting down"))
            for stream in left:
                stream.emit(CompletionDelta(error=Refused("closed", self.failure or "the server is shutting down")))
                stream.end()

    def round(self) -> bool:
        """Let newcomers in and step every stream once; without any, keep an ended turn; False once closed."""
        with self.wake:
            while not (self.closing or self.running or self.waiting or self.turns or self.jobs):
                self.wake.wait()
            if self.closing:
                return False
            self.admit()
            running = tuple(self.running)
        if self.jobs:
            self.work_on(*self.jobs[0])
        elif not running and self.turns:
            self.decoder.keep_turn(*self.turns.popleft())
        begun = [stream for stream in running if stream.begun and not stream.cancelled]
        others = [stream for stream in running if not stream.begun]
        self.decode(begun)
        for stream in others:
            if not stream.cancelled:
                self.decoder.turn(stream)
        for stream in running:
            if stream.done or stream.cancelled:
                with self.wake:
                    self.running.remove(stream)
                stream.end()
        return True

    def admit(self) -> None:
        """First come, first served, while there is a place and memory for the whole stream; what is late is refused."""
        now = time.perf_counter()
        for stream in [s for s in self.waiting if now > s.deadline]:
            self.waiting.remove(stream)
            stream.emit(
                CompletionDelta(error=Refused("late", f"it waited for {self.max_seconds:g} s; try again later"))
            )
            stream.end()
        while self.waiting and len(self.running) < self.max_streams:
            taken = sum(s.need for s in self.running)
            if self.running and taken + self.waiting[0].need > self.state_bytes:
                return
            self.running.append(self.waiting.popleft())

    def decode(self, streams: list[Stream]) -> None:
        """One token of each, or several that were drafted."""
        self.decoder.decode(streams)

    def work_on(self, work: Iterator[Any], future: Future[Any]) -> None:
        """One step of a job; its last value or its error is the future's; a future that was cancelled ends it."""
        try:
            value = None if future.cancelled() else next(work)
            if value is None and not future.cancelled():
                return
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                future.set_result(value)
        except Exception as error:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
        self.jobs.popleft()
