"""The generation loop: prefill once, then one token at a time with explicit state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from fastsnn_console import contention
from fastsnn_console.typed import check_fields
from fastsnn_core.errors import ArgumentError, FastSNNError, check_options
from fastsnn_core.parameters import checked
from fastsnn_text.take_over import LONG, TakeOver
from fastsnn_text.text_stream import TextStream
from fastsnn_text.tokenizers import ends_of, prompt_ids, tokenizer_of

CHUNK = 256
"""Tokens of a prompt read at once; on two cores as fast as longer pieces, and a shared beginning can be cached."""

PIECE = 256
"""Weights that are added up together when a token is drawn."""

AGAIN = 16
"""Tokens after which a fused step that was not there (it may be compiling) is asked for again."""


@attrs.frozen
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; the lowest id wins a tie."""

    temperature: float = attrs.field(default=1.0)
    top_p: float = attrs.field(default=1.0, validator=checked(attrs.validators.ge(1e-6), attrs.validators.le(1)))
    top_k: int = attrs.field(default=0, validator=checked(attrs.validators.ge(0)))
    seed: int | None = attrs.field(
        default=None, validator=checked(attrs.validators.optional(attrs.validators.instance_of(int)))
    )

    @temperature.validator
    def _check(self, _: attrs.Attribute[float], value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FastSNNError(f"temperature must be a number, got {value!r}")
        if not (value == 0 or 1e-6 <= value < float("inf")):
            raise FastSNNError(f"temperature must be 0 (greedy) or at least 1e-6, got {value}")

    def generator(self) -> torch.Generator:
        """The random stream of one completion."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token from logits ``[V]``: with ``w_i = exp((l_i - max l) / T)`` the first i whose ``w_0 + … + w_i`` is
        above ``u Σw``, for one uniform number u of `generator`. top_k and top_p leave only the likeliest of the tokens.

        One number a token, where `torch.multinomial` draws one for every id of the vocabulary. Sums are float64, of
        `PIECE` weights each and then of these.
        """
        numbers = logits.detach().float().cpu().numpy()  # torch would wake its threads for each of these operations
        best = numbers.max()
        if not -math.inf < best < math.inf:
            raise FastSNNError(
                "the model's logits are NaN or infinite: its training diverged, or its weights are damaged"
            )
        if self.temperature == 0:
            return int(numbers.argmax())
        with np.errstate(over="ignore", under="ignore"):  # far below the likeliest: 0
            weights = np.subtract(numbers, best)
            weights /= np.float32(self.temperature)
            np.exp(weights, out=weights)
        if 0 < self.top_k < weights.size:
            weights[weights < np.partition(weights, -self.top_k)[-self.top_k]] = 0
        ids = None if self.top_p == 1 else nucleus(weights, self.top_p)
        found = drawn(weights if ids is None else weights[ids], generator)
        return found if ids is None else int(ids[found])


def drawn(weights: Any, generator: torch.Generator) -> int:
    """The first i whose w_0 + … + w_i is above u Σw; never one that weighs nothing."""
    whole = len(weights) // PIECE * PIECE
    pieces = weights[:whole].reshape(-1, PIECE).sum(1, dtype=np.float64)
    sums = np.cumsum(np.append(pieces, weights[whole:].sum(dtype=np.float64)))
    goal = float(torch.rand(1, generator=generator, dtype=torch.float64)) * sums[-1]
    piece = min(int(np.searchsorted(sums, goal, side="right")), int(np.searchsorted(sums, sums[-1])))
    some = weights[piece * PIECE : (piece + 1) * PIECE]
    inside = np.cumsum(some, dtype=np.float64)
    before = sums[piece - 1] if piece else 0.0
    last = int(np.searchsorted(inside, inside[-1]))  # the last that weighs anything
    return piece * PIECE + min(int(np.searchsorted(inside, goal - before, side="right")), last)


def nucleus(weights: Any, top_p: float) -> Any:
    """Ids of the likeliest tokens, as few as weigh `top_p` of all together; `weights` are at most 1, the likeliest's.

    Only what weighs enough is sorted: most of a vocabulary never does.
    """
    goal = top_p * weights.sum(dtype=np.float64)
    for least in (1e-2, 1e-4, 0.0):
        ids = np.flatnonzero(weights >= least)
        if weights[ids].sum(dtype=np.float64) >= goal:
            break
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    before = np.cumsum(weights[ids], dtype=np.float64) - weights[ids]
    return ids[before < goal]


@torch.inference_mode()
def generate_ids(
    model: nn.Module,
    prompt: list[int],
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    *,
    stop: int | Collection[int] | None = None,
    state: Any = None,
    chunk: int = CHUNK,
) -> Iterator[int]:
    """Token ids after `prompt` (and after `state`, where a stream goes on), until a token of `stop` or `max_tokens`.

    The prompt is read in chunks, so that its memory is bounded; each further token costs one step, fused
    where the model has it (``model.fast``: the same logits; ``model.fast_step`` says which it was), and so are prompts
    where that is faster. The server cuts the prompts of float models at the same places, so that its tokens are these.

    Errors (FastSNNError): an empty prompt, ids outside the vocabulary, a state of other streams.
    """
    sampling = sampling or Sampling()
    stops = frozenset(() if stop is None else (stop,) if isinstance(stop, int) else stop)
    size = getattr(getattr(model, "spec", None), "vocab_size", None)
    if not prompt:
        raise FastSNNError("the prompt is empty; give at least one token")
    if size is not None and not all(0 <= i < size for i in prompt):
        raise FastSNNError(f"the prompt has token ids outside 0 … {size - 1}")
    device = next(model.parameters()).device
    generator = sampling.generator()
    fast = getattr(model, "fast", None)
    fused = None if fast is None else fast(state, wait=False)
    if fused is not None and len(prompt) > fused.most_read:
        fused = None  # the layers read so many faster
    meanwhile = getattr(model, "meanwhile", contextlib.nullcontext)
    for begin in range(0, len(prompt), chunk):
        piece = prompt[begin : begin + chunk]
        if fused is not None:
            logits = fused.read(piece)
        else:
            with meanwhile():
                logits, state = model(torch.tensor([piece], device=device), state, return_state=True, last=True)
            logits = logits[0, -1]
    coming: TakeOver | None = None
    for left in reversed(range(max_tokens)):
        contention.tick()
        token = sampling.pick(logits, generator)
        if token in stops:
            return
        yield token
        if not left:
            return
        step, found = max_tokens - 1 - left, None
        if coming is not None:
            coming.missed.append(token)
            if not coming.is_alive():
                fused, found = coming.caught_up()
                coming = None
        elif fused is None and fast is not None and (step == 1 or step % AGAIN == 0):
            if len(prompt) + step < LONG:
                fused = fast(state, wait=False)
            else:
                coming = TakeOver(model, state)
                coming.missed.append(token)
        if found is not None:
            logits = found
        elif fused is not None:
            logits = fused.step(token)
        else:
            with meanwhile():
                logits, state = model(torch.tensor([[token]], device=device), state, return_state=True, last=True)
            logits = logits[0, -1]


def generate_text(
    model: nn.Module,
    prompt: str | list[int],
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    *,
    stop: tuple[str, ...] = (),
    state: Any = None,
    before: list[int] | None = None,
) -> Iterator[str]:
    """Text after `prompt` (text, or token ids), piece by piece, until an end token, a `stop` string or `max_tokens`.

    With `state` the prompt goes on from what that has read, and `before` are the ids of all of it.
    """
    tokenizer = tokenizer_of(model)
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    if not ids and tokenizer.end is not None:
        ids = [tokenizer.end]
    training = model.training
    model.eval()
    try:
        stream, held = TextStream(tokenizer, before or ids), ""
        for token in generate_ids(model, ids, max_tokens, sampling, stop=ends_of(tokenizer), state=state):
            held += stream.push(token)
            held, done = cut(held, stop)
            if done:
                yield held
                return
            safe = len(held) - overlap(held, stop)
            if safe:
                yield held[:safe]
                held = held[safe:]
        held, _ = cut(held + stream.close(), stop)
        if held:
            yield held
    finally:
        model.train(training)


def stop_texts(stop: Any) -> tuple[str, ...]:
    """Texts to stop at, from one text or several."""
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Collection) else (stop,)
    if not all(isinstance(text, str) for text in texts):
        raise ArgumentError(f"stop is a text, or several texts, got {stop!r}")
    return texts


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """`text` up to the first stop string, and whether there was one."""
    places = [i for i in (text.find(s) for s in stop if s) if i >= 0]
    return (text[: min(places)], True) if places else (text, False)


def overlap(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest tail of `text` that may still become a stop string."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


def generate_after(model: nn.Module, prompt: Any = None, max_tokens: int = 128, **settings: Any) -> Any:
    """`prompt` a text: the text after it; a tensor of ids ``[T]`` or ``[1, T]``: the ids, continued, in that form.

    A list of ids is continued as a list. `settings` are those of `Sampling`, and ``stop``, a text or several (for ids:
    ids that end it). transformers' names are taken, too: ``input_ids``, ``max_new_tokens``, ``do_sample=False``.
    Errors (ArgumentError): less than one token, a setting that does not exist or is out of range, a prompt of another
    kind; a text where the model has no tokenizer (TokenizerError).
    """
    prompt = settings.pop("input_ids", None) if prompt is None else prompt
    max_tokens = settings.pop("max_new_tokens", max_tokens)
    if settings.pop("do_sample", True) is False:
        settings.setdefault("temperature", 0)
    if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
        return generate_after(model, torch.tensor(prompt), max_tokens, **settings).tolist()
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ArgumentError(f"max_tokens is a whole number of at least 1, got {max_tokens!r}")
    stop = settings.pop("stop", ())
    check_options("generate", settings, ["stop", *(f.name for f in attrs.fields(Sampling))])
    check_fields("generate", Sampling, settings)
    sampling = Sampling(**settings)
    if isinstance(prompt, str):
        return "".join(generate_text(model, prompt, max_tokens, sampling, stop=stop_texts(stop)))
    if not isinstance(prompt, Tensor) or prompt.ndim > 2 or (prompt.ndim == 2 and len(prompt) != 1):
        raise ArgumentError(
            f"the prompt is one text, or token ids [T] or [1, T]; got {type(prompt).__name__} "
            f"{list(prompt.shape) if isinstance(prompt, Tensor) else repr(prompt)}; one call for each text"
        )
    training = model.training
    model.eval()
    try:
        new = list(generate_ids(model, prompt.reshape(-1).tolist(), max_tokens, sampling, stop=stop or None))
    finally:
        model.train(training)
    return torch.cat([prompt.reshape(-1), prompt.new_tensor(new)]).reshape(*prompt.shape[:-1], -1)
