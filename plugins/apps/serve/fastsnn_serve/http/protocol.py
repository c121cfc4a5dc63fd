"""From an OpenAI request body to a `CompletionRequest`: supported parameters, refused ones, and defaults.

Honoured: prompt (string, strings, token ids, lists of them) or messages; the fields of
`fastsnn_serve.api.sampling_fields`; n, best_of, echo, logprobs, top_logprobs, stream, stream_options, response_format,
tools, tool_choice, model, user; for chats documents, chat_template_kwargs, add_generation_prompt,
continue_final_message. Every other field is an error unless it stands at the value that OpenAI gives it when left out.
"""

from __future__ import annotations

from typing import Any

import attrs

from fastsnn_serve.api.response_format import read_format
from fastsnn_serve.api.sampling_fields import read_params, read_stream
from fastsnn_serve.api.tools import Tools, described, read_tools
from fastsnn_serve.engine.grammar import Grammars
from fastsnn_serve.engine.streams import SamplingParams
from fastsnn_serve.http.chat_template import RequestChatTemplate, validate_messages
from fastsnn_serve.http.strict_json import Fields, Invalid, excerpt, is_int, is_utf8
from fastsnn_text import Tokenizer, prompt_ids

COMPLETION_TOKENS, CHAT_TOKENS = 16, 1024  # max_tokens where the request names none
CHOICES, TOP = 128, 20
HARMLESS: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"),
    "store": (False,),
    # of other servers, at the values that change nothing
    "cache_prompt": (True, False),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "mirostat": (0,),
    "priority": (0,),
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
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}


@attrs.frozen
class RequestContext:
    """What validating a request needs to know of model and server."""

    name: str
    tokenizer: Tokenizer
    vocab: int
    template: RequestChatTemplate
    grammars: Grammars
    longest: int | None = None  # tokens of prompt and answer together


@attrs.frozen
class CompletionRequest:
    """One request: prompts as ids, the best `n` of `best_of` completions of each, how to answer.

    `echoes`: texts to send first, or None. `tools`: what the answer may call.
    """

    chat: bool
    prompts: tuple[list[int], ...]
    echoes: tuple[str | None, ...]
    params: SamplingParams
    n: int
    score: int | None
    stream: bool
    include_usage: bool
    best_of: int = 1
    tools: Tools | None = None

    def params_per_choice(self) -> list[SamplingParams]:
        """One per choice: with a seed, choice i has seed + i, so that they differ and the first is the seed's own."""
        sampling = self.params.sampling
        if sampling.seed is None:
            return [self.params] * self.best_of
        return [
            attrs.evolve(self.params, sampling=attrs.evolve(sampling, seed=sampling.seed + i))
            for i in range(self.best_of)
        ]


def completion(body: Any, context: RequestContext) -> CompletionRequest:
    """A body of ``/v1/completions``."""
    fields = Fields(body)
    check_model(fields, context)
    prompts, texts = read_prompts(fields.take("prompt"), context)
    logprobs = fields.integer("logprobs", None, 0, TOP)
    echo = fields.flag("echo")
    params, n = read_params(fields, context.vocab, room(context, prompts, COMPLETION_TOKENS), 0, logprobs, ())
    best_of = fields.integer("best_of", n, 1, CHOICES)
    if best_of < n:
        raise Invalid(f"best_of ({best_of}) must be at least n ({n})", "best_of", "invalid_value")
    stream, usage, spikes = read_stream(fields)
    if stream and best_of > n:
        raise Invalid(
            "best_of above n cannot be streamed: which are best is known at the end", "best_of", "invalid_value"
        )
    params = attrs.evolve(params, rank=best_of > n, spikes=spikes, grammar=read_format(fields, context.grammars))
    fields.done(COMPLETION_HARMLESS)
    echoes = tuple(
        (text if text is not None else context.tokenizer.decode(ids)) if echo else None
        for ids, text in zip(prompts, texts, strict=True)
    )
    score = logprobs if echo else None
    return CompletionRequest(False, tuple(prompts), echoes, params, n, score, stream, usage, best_of)


def chat(body: Any, context: RequestContext) -> CompletionRequest:
    """A body of ``/v1/chat/completions``."""
    fields = Fields(body)
    check_model(fields, context)
    tools = read_tools(fields)
    ids = in_vocabulary(chat_ids(fields, context, tools), context, "messages")
    asked, top = fields.flag("logprobs"), fields.integer("top_logprobs", None, 0, TOP)
    if top is not None and not asked:
        raise Invalid("top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
    most = room(context, [ids], CHAT_TOKENS)
    params, n = read_params(fields, context.vocab, most, 1, (top or 0) if asked else None, context.template.stops)
    stream, usage, spikes = read_stream(fields)
    grammar = read_format(fields, context.grammars)
    if tools is not None and tools.forced:
        if grammar is not None:
            raise Invalid(
                "response_format cannot hold where tool_choice demands a call", "response_format", "invalid_value"
            )
        grammar = tools.grammar(context.grammars)
    fields.done(CHAT_HARMLESS)
    params = attrs.evolve(params, spikes=spikes, grammar=grammar)
    return CompletionRequest(True, (ids,), (None,), params, n, None, stream, usage, n, tools)


def room(context: RequestContext, prompts: list[list[int]], usual: int) -> int:
    """Default of max_tokens: the usual one, or what remains of the model's context length."""
    if context.longest is None:
        return usual
    return max(1, min(usual, context.longest - max(map(len, prompts), default=0)))


def chat_ids(fields: Fields, context: RequestContext, tools: Tools | None) -> list[int]:
    """The token ids of a conversation."""
    return context.template.tokens(chat_text(fields, context, tools))


def chat_text(fields: Fields, context: RequestContext, tools: Tools | None) -> str:
    """The prompt of a conversation; `chat_template_kwargs`, `documents` and tools reach the template."""
    more, documents = fields.take("chat_template_kwargs"), fields.take("documents")
    if more is not None and not isinstance(more, dict):
        raise fields.wrong("chat_template_kwargs", "an object", more)
    if documents is not None and not (isinstance(documents, list) and all(isinstance(d, dict) for d in documents)):
        raise fields.wrong("documents", "a list of objects", documents)
    add_prompt, going_on = fields.flag("add_generation_prompt", True), fields.flag("continue_final_message")
    own = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "template"}
    options = {key: value for key, value in (more or {}).items() if key not in own} | {
        "documents": documents or None, "add_generation_prompt": add_prompt and not going_on,
        "continue_final_message": going_on,
    }  # fmt: skip
    template, rows = context.template, validate_messages(fields.take("messages"))
    if tools is None:
        return template.text(rows, **options)
    text = template.text(rows, tools=list(tools.offered), **options)
    if template.plain or text == template.text(rows, **options):  # it has no place for tools
        return template.text(described(rows, tools), **options)
    return text


def check_model(fields: Fields, context: RequestContext) -> None:
    """`model` is optional, because there is only one. Fields that identify the user are accepted and have no effect."""
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


def unknown_model(name: str, context: RequestContext) -> Invalid:
    """404."""
    says = f"no model {excerpt(name)} here; this server has {excerpt(context.name)}"
    return Invalid(says, "model", "model_not_found", 404)


def read_prompts(
    value: Any, context: RequestContext, field: str = "prompt"
) -> tuple[list[list[int]], list[str | None]]:
    """``(ids, texts)`` of a prompt in any of its four forms; text begins with the start token, ids are as given."""
    if value is None:
        raise Invalid(f"{field} is missing", field, "missing_required_parameter")
    many = value if isinstance(value, list) and value and not is_int(value[0]) else [value]
    ids: list[list[int]] = []
    for one in many:
        if is_utf8(one):
            ids.append(prompt_ids(context.tokenizer, one) if one else [])
        elif isinstance(one, list) and all(map(is_int, one)):
            ids.append(one)
        else:
            wanted = "a string of valid Unicode, a list of token ids, or a list of either"
            raise Invalid(f"{field}: expected {wanted}, got {excerpt(one)}", field, "invalid_value")
        if not ids[-1]:
            raise Invalid(f"the {field} is empty; give at least one token", field, "invalid_value")
        in_vocabulary(ids[-1], context, field)
    return ids, [one if isinstance(one, str) else None for one in many]


def in_vocabulary(ids: list[int], context: RequestContext, param: str) -> list[int]:
    """`ids`; an error if one is outside the vocabulary."""
    bad = next((i for i in ids if not 0 <= i < context.vocab), None)
    if bad is not None:
        raise Invalid(f"{param}: token id {bad} is outside 0 … {context.vocab - 1}", param, "invalid_value")
    return ids
