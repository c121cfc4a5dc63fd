"""The fields of a request that say how tokens are chosen and when an answer ends."""

from __future__ import annotations

from fastsnn_serve.engine.sampler import Adjustments
from fastsnn_serve.engine.streams import SamplingParams
from fastsnn_serve.http.strict_json import Fields, Invalid, is_int, is_utf8
from fastsnn_text import Sampling

STOPS, STOP_LENGTH = 16, 256
TINY = 1e-6  # what fastsnn_text.Sampling takes
CHOICES, BIASES, SPIKES = 128, 4096, 1024


def read_params(
    fields: Fields, vocab: int, default: int, least: int, logprobs: int | None, stops: tuple[str, ...]
) -> tuple[SamplingParams, int]:
    """How to sample and when to end, and n."""
    longest = fields.integer("max_tokens", None, least)
    other = fields.integer("max_completion_tokens", longest, least)
    if longest is not None and longest != other:
        says = f"max_tokens is {longest} and max_completion_tokens {other}: give one"
        raise Invalid(says, "max_tokens", "invalid_value")
    n = fields.integer("n", 1, 1, CHOICES)
    sampling, adjust = read_sampling(fields), read_adjustments(fields, vocab)
    most = default if other is None else other
    return SamplingParams(sampling, most, stops + read_stops(fields), logprobs, adjust), n


def read_sampling(fields: Fields) -> Sampling:
    """temperature, top_p, top_k, seed."""
    top_k = fields.integer("top_k", 0, -1)
    temperature = fields.number("temperature", 1.0, 0.0, 2.0)
    if 0 < temperature < TINY:
        raise fields.wrong("temperature", f"0 (greedy) or a number from {TINY:g} to 2", temperature)
    return Sampling(
        temperature=temperature,
        top_p=fields.number("top_p", 1.0, TINY, 1.0),
        top_k=max(0, top_k),
        seed=fields.integer("seed", None, -(2**63), 2**63 - 1),
    )


def read_adjustments(fields: Fields, vocab: int) -> Adjustments:
    """Penalties, logit_bias, min_p, min_tokens, ignore_eos; llama.cpp's repeat_penalty is repetition_penalty."""
    repetition = fields.number("repetition_penalty", 1.0, 0.01, 100.0)
    repeat = fields.number("repeat_penalty", repetition, 0.01, 100.0)
    forbid = fields.integer("min_tokens", 0, 0)
    return Adjustments(
        presence=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        repetition=repeat if repetition == 1 else repetition,
        bias=read_bias(fields, vocab),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        forbid_ends=-1 if fields.flag("ignore_eos") else forbid,
    )


def read_bias(fields: Fields, vocab: int) -> tuple[tuple[int, float], ...]:
    """logit_bias: ``{"token id": -100 … 100}``; -100 bans a token, 100 all but demands it."""
    table = fields.take("logit_bias")
    if table is None:
        return ()
    wanted = f"an object of up to {BIASES} token ids (0 … {vocab - 1}, as strings) and numbers from -100 to 100"
    if not isinstance(table, dict) or len(table) > BIASES:
        raise fields.wrong("logit_bias", wanted, table)
    found = []
    for key, value in table.items():
        good = is_int(value) or isinstance(value, float)
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocab and good):
            raise fields.wrong("logit_bias", wanted, {key: value})
        if not -100 <= value <= 100:
            raise fields.wrong("logit_bias", wanted, {key: value})
        found.append((int(key), -float("inf") if value == -100 else float(value)))
    return tuple(found)


def read_stops(fields: Fields) -> tuple[str, ...]:
    """stop: a string or a list of them."""
    value = fields.take("stop")
    found = [] if value is None else [value] if isinstance(value, str) else value
    good = isinstance(found, list) and len(found) <= STOPS
    if not good or not all(is_utf8(s) and 0 < len(s) <= STOP_LENGTH for s in found):
        raise fields.wrong("stop", f"a string or up to {STOPS} of them, each of 1 to {STOP_LENGTH} characters", value)
    return tuple(found)


def read_stream(fields: Fields) -> tuple[bool, bool, int]:
    """``(stream, include_usage, spikes)``; `spikes`: tokens between two looks at the spikes, 0 where nobody asks."""
    stream, options = fields.flag("stream"), fields.take("stream_options")
    if options is None:
        return stream, False, 0
    if not stream:
        raise Invalid("stream_options needs stream to be true", "stream_options", "invalid_value")
    inner = Fields(options, "stream_options")
    usage, spikes = inner.flag("include_usage"), inner.integer("spikes_every", 0, 0, SPIKES)
    inner.done({"include_obfuscation": (False,), "continuous_usage_stats": (False,)})
    return stream, usage, spikes
