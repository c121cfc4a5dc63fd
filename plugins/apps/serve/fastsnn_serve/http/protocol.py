"""From an OpenAI request body to a `CompletionRequest`: what is honoured, what is refused, and the defaults.

Honoured: prompt (string, strings, token ids, lists of them) or messages; max_tokens, max_completion_tokens,
temperature, top_p, top_k, stop, seed, n, echo, logprobs, top_logprobs, stream, stream_options.include_usage, model,
user; for chats documents, chat_template_kwargs, add_generation_prompt, continue_final_message.
Every other field is an error unless it stands at the value that OpenAI gives it when it is left out.
"""

from __future__ import annotations

from typing import Any

import attrs

from fastsnn_serve.engine.streams import SamplingParams
from fastsnn_serve.http.chat_template import ChatTemplate
from fastsnn_serve.http.strict_json import Fields, Invalid, is_int, is_text, shown
from fastsnn_text import Sampling, Tokenizer, prompt_ids

COMPLETION_TOKENS, CHAT_TOKENS = 16, 1024  # max_tokens where the request names none
STOPS, STOP_LENGTH = 16, 256
TINY = 1e-6  # what fastsnn_text.Sampling takes
CHOICES, TOP = 128, 20
HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    # of other servers, at the values that change nothing
    "cache_prompt": (True, False),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "priority": (0,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "tfs_z": (1,),
    "timings_per_token": (False,),
    "typical_p": (1,),
    "use_beam_search": (False,),
}
COMPLETION_HARMLESS = HARMLESS | {"suffix": ("",)}
CHAT_HARMLESS = HARMLESS | {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


@attrs.frozen
class Context:
    """What requests are read against."""

    name: str
    tokenizer: Tokenizer
    vocab: int
    template: ChatTemplate
    longest: int | None = None  # tokens of prompt and answer together


@attrs.frozen
class CompletionRequest:
    """One request: prompts as ids, `n` completions of each, how to answer. `echoes`: texts to send first, or None."""

    chat: bool
    prompts: tuple[list[int], ...]
    echoes: tuple[str | None, ...]
    params: SamplingParams
    n: int
    score: int | None
    stream: bool
    include_usage: bool

    def params_per_choice(self) -> list[SamplingParams]:
        """One per choice: with a seed, choice i has seed + i, so that they differ and the first is the seed's own."""
        sampling = self.params.sampling
        if sampling.seed is None:
            return [self.params] * self.n
        return [
            attrs.evolve(self.params, sampling=attrs.evolve(sampling, seed=sampling.seed + i)) for i in range(self.n)
        ]


def completion(body: Any, context: Context) -> CompletionRequest:
    """A body of ``/v1/completions``."""
    fields = Fields(body)
    check_model(fields, context)
    prompts, texts = read_prompts(fields.take("prompt"), context)
    logprobs = fields.integer("logprobs", None, 0, TOP)
    echo = fields.flag("echo")
    params, n = read_params(fields, context, room(context, prompts, COMPLETION_TOKENS), 0, logprobs, ())
    best_of = fields.integer("best_of", n, 1)
    if best_of != n:
        raise Invalid(f"best_of: only n (here {n}) is supported, got {best_of}", "best_of", "unsupported_parameter")
    stream, usage = read_stream(fields)
    fields.done(COMPLETION_HARMLESS)
    echoes = tuple(
        (text if text is not None else context.tokenizer.decode(ids)) if echo else None
        for ids, text in zip(prompts, texts, strict=True)
    )
    return CompletionRequest(False, tuple(prompts), echoes, params, n, logprobs if echo else None, stream, usage)


def chat(body: Any, context: Context) -> CompletionRequest:
    """A body of ``/v1/chat/completions``."""
    fields = Fields(body)
    check_model(fields, context)
    ids = in_vocabulary(chat_ids(fields, context), context, "messages")
    asked, top = fields.flag("logprobs"), fields.integer("top_logprobs", None, 0, TOP)
    if top is not None and not asked:
        raise Invalid("top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
    refuse_tools(fields)
    most = room(context, [ids], CHAT_TOKENS)
    params, n = read_params(fields, context, most, 1, (top or 0) if asked else None, context.template.stops)
    stream, usage = read_stream(fields)
    fields.done(CHAT_HARMLESS)
    return CompletionRequest(True, (ids,), (None,), params, n, None, stream, usage)


def refuse_tools(fields: Fields) -> None:
    """This server calls no tools: say so where a request offers or demands some, with what to do."""
    for name, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        offered, chosen = fields.left.get(name), fields.left.get(choice)
        if offered is not None and not isinstance(offered, list):
            raise fields.wrong(name, "a list", offered)
        if offered or chosen not in (None, "none", "auto"):
            what = name if offered else choice
            says = f"{what} is not supported: this server does not call tools. Leave {name} and {choice} out"
            raise Invalid(f"{says}, or describe them in a message", what, "unsupported_parameter")


def room(context: Context, prompts: list[list[int]], usual: int) -> int:
    """max_tokens where a request names none: the usual, or what is left of the model's length."""
    if context.longest is None:
        return usual
    return max(1, min(usual, context.longest - max(map(len, prompts), default=0)))


def chat_ids(fields: Fields, context: Context) -> list[int]:
    """The prompt of a conversation; `chat_template_kwargs` and `documents` reach the template."""
    more, documents = fields.take("chat_template_kwargs"), fields.take("documents")
    if more is not None and not isinstance(more, dict):
        raise fields.wrong("chat_template_kwargs", "an object", more)
    if documents is not None and not (isinstance(documents, list) and all(isinstance(d, dict) for d in documents)):
        raise fields.wrong("documents", "a list of objects", documents)
    add_prompt, going_on = fields.flag("add_generation_prompt", True), fields.flag("continue_final_message")
    own = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "template"}
    extra = {key: value for key, value in (more or {}).items() if key not in own}
    return context.template.ids(
        fields.take("messages"), documents=documents or None, add_generation_prompt=add_prompt and not going_on,
        continue_final_message=going_on, **extra,
    )  # fmt: skip


def check_model(fields: Fields, context: Context) -> None:
    """The model may be left out: there is only one. Fields that tell who asks are accepted and have no effect."""
    name = fields.take("model")
    if name is not None and not isinstance(name, str):
        raise fields.wrong("model", "a string", name)
    if name is not None and name != context.name:
        raise unknown_model(name, context)
    for identity in ("user", "safety_identifier", "prompt_cache_key"):
        fields.text(identity)
    metadata = fields.take("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise fields.wrong("metadata", "an object", metadata)


def unknown_model(name: str, context: Context) -> Invalid:
    """404."""
    says = f"no model {shown(name)} here; this server has {shown(context.name)}"
    return Invalid(says, "model", "model_not_found", 404)


def read_params(
    fields: Fields, context: Context, default: int, least: int, logprobs: int | None, stops: tuple[str, ...]
) -> tuple[SamplingParams, int]:
    """How to sample and when to end, and n."""
    longest = fields.integer("max_tokens", None, least)
    other = fields.integer("max_completion_tokens", longest, least)
    if longest is not None and longest != other:
        says = f"max_tokens is {longest} and max_completion_tokens {other}: give one"
        raise Invalid(says, "max_tokens", "invalid_value")
    top_k = fields.integer("top_k", 0, -1)
    temperature = fields.number("temperature", 1.0, 0.0, 2.0)
    if 0 < temperature < TINY:
        raise fields.wrong("temperature", f"0 (greedy) or a number from {TINY:g} to 2", temperature)
    sampling = Sampling(
        temperature=temperature,
        top_p=fields.number("top_p", 1.0, TINY, 1.0),
        top_k=max(0, top_k),
        seed=fields.integer("seed", None, -(2**63), 2**63 - 1),
    )
    n = fields.integer("n", 1, 1, CHOICES)
    return SamplingParams(sampling, default if other is None else other, stops + read_stops(fields), logprobs), n


def read_stops(fields: Fields) -> tuple[str, ...]:
    """stop: a string or a list of them."""
    value = fields.take("stop")
    found = [] if value is None else [value] if isinstance(value, str) else value
    good = isinstance(found, list) and len(found) <= STOPS
    if not good or not all(is_text(s) and 0 < len(s) <= STOP_LENGTH for s in found):
        raise fields.wrong("stop", f"a string or up to {STOPS} of them, each of 1 to {STOP_LENGTH} characters", value)
    return tuple(found)


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """``(stream, include_usage)``."""
    stream, options = fields.flag("stream"), fields.take("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise Invalid("stream_options needs stream to be true", "stream_options", "invalid_value")
    inner = Fields(options, "stream_options")
    usage = inner.flag("include_usage")
    inner.done({"include_obfuscation": (False,)})
    return stream, usage


def read_prompts(value: Any, context: Context) -> tuple[list[list[int]], list[str | None]]:
    """``(ids, texts)`` of a prompt in any of its four forms; text begins with the start token, ids are as given."""
    if value is None:
        raise Invalid("prompt is missing", "prompt", "missing_required_parameter")
    many = value if isinstance(value, list) and value and not is_int(value[0]) else [value]
    ids: list[list[int]] = []
    for one in many:
        if is_text(one):
            ids.append(prompt_ids(context.tokenizer, one) if one else [])
        elif isinstance(one, list) and all(map(is_int, one)):
            ids.append(one)
        else:
            wanted = "a string of valid Unicode, a list of token ids, or a list of either"
            raise Invalid(f"prompt: expected {wanted}, got {shown(one)}", "prompt", "invalid_value")
        if not ids[-1]:
            raise Invalid("the prompt is empty; give at least one token", "prompt", "invalid_value")
        in_vocabulary(ids[-1], context, "prompt")
    return ids, [one if isinstance(one, str) else None for one in many]


def in_vocabulary(ids: list[int], context: Context, param: str) -> list[int]:
    """`ids`, if the model knows them all."""
    bad = next((i for i in ids if not 0 <= i < context.vocab), None)
    if bad is not None:
        raise Invalid(f"{param}: token id {bad} is outside 0 … {context.vocab - 1}", param, "invalid_value")
    return ids
