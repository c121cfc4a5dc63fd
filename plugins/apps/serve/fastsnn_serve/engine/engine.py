"""The engine: continuous batching in one thread that owns the model.

    one round:  admit waiting streams; one decode step of every decoding stream, with up to 16 tokens of prompts as
                further rows (32 where nobody decodes), where steps are shared; else one prefill chunk of every other
                stream (prompts of several chunks get half of the time while others decode)

A W8A model decodes streams as one batch (``model.step_many``): integer sums are exact, so the result is bit for bit
that of each stream alone. A float model decodes streams one after the other, because a batch rounds differently and
rounding can change spikes. Either way the tokens of a stream are exactly those of
``fastsnn_text.generate_ids(model, prompt, max_tokens, sampling, stop=ends, chunk=chunk)``, whatever else is being
served. With linear and windowed attention the state of a stream has a constant size.
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
    """The engine rejects a request; `reason` is "busy", "closed", "late", "too_many" or "too_long"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Engine:
    """Serves `model`: `max_streams` run at once, `max_waiting` more queue; prefill is in chunks of `chunk` tokens.

    `cache_bytes` bounds the prefix cache (0: none). `state_bytes` bounds the states of all running streams (default:
    half of the memory free at the start); a request whose prompt and max_tokens could never fit is rejected, others
    wait for room. It matters for softmax layers, whose KV cache grows. `max_model_len` bounds prompt plus max_tokens;
    by default it is the model's own maximum, if known (0: no bound). `max_seconds` bounds the time from request to
    completion (0: no bound): a running stream then ends with what it has generated, a waiting one is rejected.
    `speculate` turns on speculative decoding with that many draft tokens, from n-grams of the stream or from the
    model `draft`; the output does not change.
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
        self.turns: deque[tuple[list[int], int]] = deque(maxlen=32)  # finished turns to cache when idle
        draft = None if draft is None else draft.eval()
        self.decoder = DecodeLoop(self.runner, self.tokenizer, self.ends, self.metrics, self.turns, speculate, draft)
        self.wake = threading.Condition()
        self.thread: threading.Thread | None = None
        self.closing, self.draining, self.failure = False, False, ""
        made_for = getattr(model, "longest", None) or getattr(model, "meta", {}).get("max_positions")
        made_for = made_for if max_model_len is None else max_model_len
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
        """Start the thread (also after `close`); does nothing if it runs: one thread owns a model."""
        with self.wake:
            if self.thread is None or not self.thread.is_alive():
                self.closing, self.draining, self.failure = False, False, ""
                self.thread = threading.Thread(target=self.work, name="fastsnn-engine", daemon=True)
                self.thread.start()

    def stop(self) -> None:
        """Stop the thread after its current round; every unfinished stream gets an error."""
        with self.wake:
            self.closing = True
            self.wake.notify()

    def close(self, timeout: float | None = 30.0) -> None:
        """`stop`, then wait `timeout` seconds; a thread still running after that keeps the model."""
        self.stop()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout)
            if self.thread.is_alive():
                LOG.warning("the engine has not ended after %s s: a step is still running", timeout)
            else:
                self.thread = None

    def drain(self, timeout: float) -> bool:
        """Reject new requests and wait up to `timeout` seconds for all streams to end; False if some have not."""
        self.draining = True
        end = time.monotonic() + timeout
        while (self.running or self.waiting) and self.alive and time.monotonic() < end:
            time.sleep(0.02)
        return not (self.running or self.waiting)

    @property
    def alive(self) -> bool:
        """Is the engine usable? True also before the first request starts its thread."""
        return not self.closing and not self.failure

    def refuse_closed(self) -> None:
        """Raise `Refused` if the engine is stopped, failed or draining."""
        if not self.alive or self.draining:
            raise Refused("closed", self.failure or "the server is shutting down")

    def state_in_use(self) -> int:
        """Bytes of the running streams' states."""
        return sum(getattr(s.state, "nbytes", None) or nbytes(s.state) for s in tuple(self.running))

    def check_length(self, tokens: int, asks: str) -> None:
        """Raise `Refused` if `tokens` exceeds `max_model_len`."""
        if self.max_model_len is not None and tokens > self.max_model_len:
            says = f"{asks} are {tokens} tokens together; this model was made for {self.max_model_len}"
            raise Refused("too_long", f"{says} (the server's max_model_len)")

    def submit(self, streams: list[Stream]) -> None:
        """Admission control: queue all of `streams`, or raise `Refused` and queue none."""
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
        with self.wake:  # checked again under the lock: it may have been stopped meanwhile
            self.refuse_closed()
            if len(self.waiting) + len(self.running) + len(streams) > most:
                raise Refused("busy", f"the queue is full ({most} streams run or wait); try again later")
            for stream in streams if self.max_seconds else ():
                stream.deadline = time.perf_counter() + self.max_seconds
            self.waiting.extend(streams)
            self.wake.notify()

    def cancel(self, streams: list[Stream]) -> None:
        """Cancel streams: waiting ones at once, running ones at the end of the round."""
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
        """Run `work` on the engine's thread, one `next` per round; the future gets the first value that is not None.

        Cancelling the future ends the job; raises `Refused` if the engine is closed or its job queue is full.
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
        """The thread's main function: rounds until closed."""
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
        """Admit waiting streams and step every running one; if idle, cache a finished turn. False once closed."""
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
            self.decoder.keep_turn()
        begun = [stream for stream in running if (stream.begun or stream.feeding) and not stream.cancelled]
        others = [s for s in running if not (s.begun or s.feeding or s.cancelled)]
        self.decode(begun)
        self.decoder.prefill(others, len(begun))
        for stream in running:
            if stream.done or stream.cancelled:
                with self.wake:
                    self.running.remove(stream)
                stream.end()
        return True

    def admit(self) -> None:
        """Admit in order of arrival while a slot and memory for the whole stream are free; reject expired requests."""
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
        """One decode step of every stream, speculative where it has drafts."""
        self.decoder.decode(streams)

    def work_on(self, work: Iterator[Any], future: Future[Any]) -> None:
        """One `next` of the first job; a value that is not None, or an error, completes its future and ends the job."""
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
