"""Runs the model: chunked prefill with the prefix cache, decode steps, and sampled spike statistics."""

from __future__ import annotations

import time
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.lowering import Unsupported, lower
from fastsnn_integer.quantization import not_batch_invariant
from fastsnn_serve.engine.detokenizer import Scored, scores
from fastsnn_serve.engine.prefix_cache import PrefixCache, copied, worth_keeping
from fastsnn_serve.engine.spike_view import SpikeView
from fastsnn_serve.engine.streams import Prompt, Stream
from fastsnn_serve.metrics import Metrics

SAMPLE_EVERY = 64  # decode steps between two samples of spike statistics, at least
SAMPLE_SHARE = 0.01  # of the time that samples may take: an unfused step takes as long as dozens of fused ones
ROWS = 32  # tokens of prompts that a step reads where nobody decodes: one pass over the weights
BESIDE = 16  # and where others decode: their tokens come at most about twice as late
TOGETHER = 512  # tokens of several prompts that are read in one pass; one chunk, where others decode
LOOK_AGAIN = 1.0  # seconds for which the model, which the engine owns, is taken to be as it was
FORK = 16  # a snapshot is taken where prompts diverge only if they share this many tokens beyond the last one


class PrefillRunner:
    """The model and its prefix cache, used by the engine's thread only; prefill chunks end at multiples of `chunk`.

    `exact`: the result has the same bits however a prompt is split into chunks (integer arithmetic throughout).
    """

    def __init__(self, model: nn.Module, device: torch.device, chunk: int, cache_bytes: int, metrics: Metrics) -> None:
        self.model, self.device, self.chunk, self.metrics = model, device, chunk, metrics
        self.exact = not not_batch_invariant(model)
        self.cache = PrefixCache(cache_bytes, chunk, self.exact)
        self.steps, self.next_sample = 0, 0.0
        fast = getattr(model, "fast", None)
        self.roomy = fast is not None and "room" in signature(fast).parameters
        self.packs = self.exact and callable(getattr(model, "read_together", None))
        self.apart = why_apart(model)
        self.most_read = 1 << 62  # longest rest of a prompt that steps read; the kernel says
        self.meanwhile: Any = getattr(model, "meanwhile", nullcontext)  # kernels that compile are not waited for

    def run(self, ids: list[int], state: Any, last: bool = True) -> tuple[Tensor, Any]:
        """Forward pass: ``(logits [1,T,V], new state)``; with `last` only the last token's logits, ``[1,1,V]``."""
        with self.meanwhile():
            return self.model(torch.tensor([ids], device=self.device), state, return_state=True, last=last)

    def begin(self, state: Any, room: int) -> Any:
        """The state in its fastest form for decode steps: a fused one if the model supports it, else unchanged.

        Its caches are allocated for `room` tokens.
        """
        return self.begin_all([state], [room])[0]

    def begin_all(self, states: list[Any], rooms: list[int]) -> list[Any]:
        """`begin` of several states; what has to be looked at once is looked at once, where the model can do that."""
        model: Any = self.model
        if not hasattr(model, "fast"):
            return states
        if hasattr(model, "fast_all"):
            found = model.fast_all(states, rooms, wait=False, within=LOOK_AGAIN)
        else:
            more = [{"room": room} if self.roomy else {} for room in rooms]
            found = [model.fast(state, wait=False, **one) for state, one in zip(states, more, strict=True)]
        return [state if fused is None else fused for state, fused in zip(states, found, strict=True)]

    def step(self, stream: Stream, look: bool) -> tuple[Tensor, Any]:
        """One decode step; `look` records spike statistics, which needs the unfused path."""
        (token,), state = stream.piece, stream.state
        fused = hasattr(state, "step")
        if not look:
            return (state.step(token)[None, None], state) if fused else self.run([token], state)
        begun = time.monotonic()
        with SpikeView(self.model) as view:
            logits, after = self.run([token], state.state() if fused else state)
        now = time.monotonic()
        self.next_sample = now + (now - begun) / SAMPLE_SHARE
        stream.spikes = view if stream.params.spikes else None
        self.metrics.add("fastsnn_spike_channels_total", view.channels)
        self.metrics.add("fastsnn_spike_channels_silent_total", view.silent)
        return logits, self.begin(after, stream.tokens)  # also retries the fused form, which may have been compiling

    def looks(self, stream: Stream) -> bool:
        """Does this step record spikes? Every ``params.spikes`` tokens of a stream that asks for them; else every
        `SAMPLE_EVERY` steps, unless samples took more than `SAMPLE_SHARE` of the time.
        """
        sampled, self.steps = self.steps % SAMPLE_EVERY == 0, self.steps + 1
        sampled = sampled and time.monotonic() >= self.next_sample
        every = stream.params.spikes
        return sampled or bool(every and len(stream.ids) % every == 0)

    def step_many(self, streams: list[Stream]) -> list[Any]:
        """One step of each stream, which reads its `piece`: ``(logits [1,1,V], state)``, or the exception that ends it.

        Fused streams run as one batch, bit for bit as they would alone; the others run one after the other.
        """
        out: list[Any] = [None] * len(streams)
        together = []
        for i, stream in enumerate(streams):
            stream.spikes = None
            look = not stream.feeding and self.looks(stream)
            if not self.apart and hasattr(stream.state, "step") and not look:
                together.append(i)
                continue
            try:
                out[i] = self.step(stream, look)
            except Exception as error:
                out[i] = error
        if not together:
            return out
        states = [streams[i].state for i in together]
        model: Any = self.model
        try:
            found = model.read_many(states, [streams[i].piece for i in together])
        except Exception as error:  # the batched step itself failed, so every stream in it ends
            found = [error] * len(together)
        for i, state, logits in zip(together, states, found, strict=True):
            out[i] = logits if isinstance(logits, Exception) else (logits[None, None], state)
        if len(together) > 1:
            self.metrics.add("fastsnn_shared_tokens_total", len(together))
        return out

    def read_drafts(self, stream: Stream, drafts: list[int]) -> tuple[Tensor, Any, Any]:
        """``(logits [1,k+1,V], state before, state after)`` of one forward pass over the last token and k `drafts`."""
        before = stream.state.state() if hasattr(stream.state, "step") else stream.state
        logits, after = self.run([stream.ids[-1], *drafts], copied(before), last=False)
        return logits, before, after

    def resume(self, ids: list[int], before: Any, room: int) -> Any:
        """Run `ids` from the state `before`; the resulting state in its fastest form (see `begin`)."""
        return self.begin(self.run(ids, copied(before))[1], room)

    def look_up(self, prompt: Prompt) -> None:
        """Look for the prompt in the prefix cache, once, unless it is to be scored."""
        if prompt.looked or prompt.score is not None or not self.cache.budget:
            return
        prompt.looked = True
        self.metrics.add("fastsnn_prefix_cache_queries_total")
        prompt.cached, hit = self.cache.find(prompt.ids)
        if hit is not None:
            self.metrics.add("fastsnn_prefix_cache_hits_total")
            prompt.at, prompt.state, prompt.logits = prompt.cached, copied(hit.state), hit.logits
        if self.exact and not prompt.ready and (fork := self.cache.shared(prompt.ids)) >= prompt.at + FORK:
            prompt.fork = fork

    def feeds(self, stream: Stream) -> bool:
        """Is the rest of a stream's prompt to be read in steps, as rows beside the tokens of others?

        Only where a step has the bits of a chunk and several streams share one, where nobody else wants the prompt,
        and up to the length from which the layers themselves read faster.
        """
        prompt = stream.prompt
        own = prompt.score is None and prompt.users == 1 and stream.params.max_tokens > 0
        return own and self.exact and not self.apart and self.roomy and len(prompt.ids) - prompt.at <= self.most_read

    def feed(self, streams: list[Stream]) -> list[Stream]:
        """Let decode steps read the rest of these prompts; the streams for which that cannot be (yet)."""
        states = self.begin_all([s.prompt.state for s in streams], [s.tokens for s in streams]) if streams else []
        left = []
        for stream, state in zip(streams, states, strict=True):
            if hasattr(state, "step"):
                self.most_read = state.most_read
                stream.state, stream.prompt.state, stream.feeding = state, None, True
            else:  # it is being compiled
                left.append(stream)
        return left

    def share(self, streams: list[Stream]) -> list[Stream]:
        """The streams of the next step, each with the `piece` that it reads: those that decode their newest token, and
        those whose prompts are read `ROWS` tokens together, or `BESIDE` beside the others, the oldest first.
        """
        now = [stream for stream in streams if not stream.feeding]
        for stream in now:
            stream.piece = stream.ids[-1:]
        room = BESIDE if now else ROWS
        for stream in sorted((s for s in streams if s.feeding), key=lambda stream: stream.submitted):
            prompt = stream.prompt
            stream.piece = prompt.ids[prompt.at : min(self.chunk_end(prompt), prompt.at + room)]
            room -= len(stream.piece)
            if stream.piece:
                now.append(stream)
        return now

    def fed(self, stream: Stream) -> None:
        """A step has read a piece of the stream's prompt: take the snapshots that `prefill` takes."""
        prompt = stream.prompt
        prompt.at += len(stream.piece)
        if prompt.ready:
            prompt.logits = stream.logits
        if self.cache.budget and (prompt.ready or prompt.at == prompt.fork or prompt.at % self.chunk == 0):
            prompt.state = stream.state.state()
            self.keep(prompt, exact=True)
            prompt.state = None

    def chunk_end(self, prompt: Prompt) -> int:
        """Where the prompt's next chunk ends."""
        end = min((prompt.at // self.chunk + 1) * self.chunk, len(prompt.ids))
        return prompt.fork if prompt.at < prompt.fork < end else end

    def prefill(self, prompt: Prompt, go_on: bool) -> None:
        """Prefill the prompt's next chunk; the first call looks in the prefix cache.

        `go_on`: tokens will be generated, so the logits after the last token must be those of an unscored prefill.
        """
        self.look_up(prompt)
        if prompt.ready:
            return
        begin, end, before = prompt.at, self.chunk_end(prompt), prompt.state
        if prompt.score is not None:
            before = copied(before)
            self.score(prompt, end)
        if prompt.score is None or (go_on and end == len(prompt.ids)):  # scoring's rows round differently: run again
            prompt.logits, prompt.state = self.run(prompt.ids[begin:end], before)
        prompt.at = end
        if self.cache.budget:
            self.keep(prompt, exact=prompt.score is None or go_on)

    def prefill_together(self, prompts: list[Prompt]) -> None:
        """The next chunk of each of several prompts, which nobody scores, in one pass over the weights."""
        model: Any = self.model
        ends = [self.chunk_end(prompt) for prompt in prompts]
        pieces = [prompt.ids[prompt.at : end] for prompt, end in zip(prompts, ends, strict=True)]
        with self.meanwhile():
            found = model.read_together(pieces, [prompt.state for prompt in prompts])
        for prompt, end, (logits, state) in zip(prompts, ends, found, strict=True):
            prompt.at, prompt.logits, prompt.state = end, logits, state
            if self.cache.budget:
                self.keep(prompt, exact=True)

    def score(self, prompt: Prompt, end: int) -> None:
        """Prefill up to `end` and record the log-probability of each prompt token given those before it."""
        begin, before = prompt.at, prompt.logits
        logits, prompt.state = self.run(prompt.ids[begin:end], prompt.state, last=False)
        if before is None:
            prompt.scored.append(Scored(prompt.ids[0], None, ()))
        tokens = prompt.ids[1 if before is None else begin : end]
        rows = logits[0, :-1] if before is None else torch.cat([before[0], logits[0, :-1]])
        prompt.scored += scores(rows, tokens, prompt.score or 0)
        prompt.logits = logits[:, -1:].clone()

    def keep(self, prompt: Prompt, exact: bool) -> None:
        """Cache the current state at selected chunk boundaries; at the prompt's end with the next logits, if exact."""
        ids, end = prompt.ids, prompt.at
        whole = end == len(ids)
        if whole and exact:
            self.cache.put(ids, prompt.state, prompt.logits)
        elif end == prompt.fork or (end % self.chunk == 0 and worth_keeping(end // self.chunk, len(ids) // self.chunk)):
            self.cache.put(ids[:end], prompt.state)

    def keep_end(self, stream: Stream) -> None:
        """Exact models: cache the final state of a completion, which may not include its newest token yet."""
        if stream.read:
            state = stream.state.state() if hasattr(stream.state, "step") else stream.state
            self.cache.put(stream.prompt.ids + stream.ids[: stream.read], state)

    def keep_turn(self, ids: list[int], new: int) -> bool:
        """Prefill one chunk of a finished turn and cache the state after it; True while chunks remain.

        `new` of the tokens were generated. Decode steps and prefill of a float model round differently, so the decode
        state cannot replace the prefill state of the same tokens.
        """
        goal = len(ids) // self.chunk * self.chunk
        at, hit = self.cache.find(ids[:goal])
        if not goal or self.cache.holds(ids[:goal]) or goal - at > new + self.chunk:
            return False
        end = at + self.chunk
        _, state = self.run(ids[at:end], None if hit is None else copied(hit.state))
        return self.cache.put(ids[:end], state) and end < goal


def why_apart(model: nn.Module) -> str:
    """Why streams of this model cannot be decoded as a batch; "" if they can."""
    if not callable(getattr(model, "step_many", None)):
        return f"{type(model).__name__} has no step of several streams"
    try:
        lower(model, "")
    except Unsupported as reason:
        return str(reason)
    return ""
