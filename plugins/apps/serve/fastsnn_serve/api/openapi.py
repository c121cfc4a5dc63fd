"""The surface as OpenAPI 3.1: every path, the fields of every body, every status that can come back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]
ERRORS = {
    "400": "a mistake in the request",
    "401": "a key is wanted",
    "404": "no such model",
    "408": "the body took too long",
    "413": "the body is too large",
    "429": "the queue is full",
    "500": "a fault of the server's",
    "503": "it is shutting down, or the request waited too long",
    "507": "the server's disk is full",
}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ENCODING: Schema = {"enum": ["float", "base64"]}


def integer_of(low: int, high: int = 2**31 - 1) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": low, "maximum": high}


def number_schema(low: float, high: float) -> Schema:
    """A number."""
    return {"type": "number", "minimum": low, "maximum": high}


def array_of(of: Schema, least: int = 0, most: int | None = None) -> Schema:
    """A list."""
    return {"type": "array", "items": of, "minItems": least} | ({} if most is None else {"maxItems": most})


def object_of(required: Iterable[str], **properties: Schema) -> Schema:
    """An object with just these fields."""
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def bodies(vocab: int, name: str) -> dict[str, Schema]:
    """The body of each path that takes one; `name` is the model's."""
    model: Schema = {"enum": [name]}
    token = integer_of(0, vocab - 1)
    words = {"type": "string", "minLength": 1}
    prompt = {"anyOf": [words, array_of(token, 1), array_of(words, 1), array_of(array_of(token, 1), 1)]}
    content = {"anyOf": [TEXT, array_of(object_of(["type", "text"], type={"const": "text"}, text=TEXT))]}
    called = object_of(
        ["function"], id=TEXT, type={"const": "function"}, function=object_of(["name"], name=TEXT, arguments=OBJECT)
    )
    message = {"anyOf": [
        object_of(["role", "content"], role={"enum": ["system", "developer", "user"]}, content=content, name=TEXT),
        object_of(["role"], role={"const": "assistant"}, content=content, name=TEXT, tool_calls=array_of(called)),
        object_of(["role", "content"], role={"const": "tool"}, content=content, name=TEXT, tool_call_id=TEXT),
    ]}  # fmt: skip
    turn = object_of(
        ["role", "content"], role={"enum": ["system", "developer", "user", "assistant"]}, content=content,
        type={"const": "message"},
    )  # fmt: skip
    tool = object_of(
        ["type", "function"],
        type={"const": "function"},
        function=object_of(
            ["name"], name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, description=TEXT, parameters=OBJECT,
            strict=FLAG,
        ),
    )  # fmt: skip
    form = {
        "anyOf": [
            object_of(["type"], type={"enum": ["text", "json_object"]}),
            object_of(["type", "json_schema"], type={"const": "json_schema"}, json_schema=object_of(
                ["name", "schema"], name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, schema=OBJECT,
                strict=FLAG, description=TEXT)),
        ]
    }  # fmt: skip
    common: dict[str, Schema] = {
        "model": model, "max_tokens": integer_of(1), "max_completion_tokens": integer_of(1),
        "temperature": number_schema(0, 2), "top_p": number_schema(1e-6, 1), "top_k": integer_of(-1),
        "min_p": number_schema(0, 1), "n": integer_of(1, 128),
        "seed": integer_of(-(2**63), 2**63 - 1), "presence_penalty": number_schema(-2, 2),
        "frequency_penalty": number_schema(-2, 2),
        "repetition_penalty": number_schema(0.01, 100), "min_tokens": integer_of(0), "ignore_eos": FLAG,
        "logit_bias": {"type": "object", "additionalProperties": number_schema(-100, 100)},
        "stop": {"anyOf": [words, array_of(words, 0, 16)]}, "stream": FLAG, "response_format": form, "user": TEXT,
        "stream_options": object_of([], include_usage=FLAG, spikes_every=integer_of(0, 1024)), "metadata": OBJECT,
    }  # fmt: skip
    chat: dict[str, Schema] = {
        "messages": array_of(message, 1), "tools": array_of(tool, 0, 128), "documents": array_of(OBJECT),
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, object_of(
            ["type", "function"], type={"const": "function"}, function=object_of(["name"], name=TEXT))]},
        "chat_template_kwargs": OBJECT, "add_generation_prompt": FLAG, "continue_final_message": FLAG,
    }  # fmt: skip
    text = {"prompt": TEXT, "messages": array_of(message, 1), "model": model, "add_special_tokens": FLAG}
    either: Schema = {"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    session = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"}
    return {
        "/v1/completions": object_of(
            ["prompt"], prompt=prompt, echo=FLAG, logprobs=integer_of(0, 20), best_of=integer_of(1, 128), **common
        ),
        "/v1/chat/completions": object_of(
            ["messages"], logprobs=FLAG, top_logprobs=integer_of(0, 20), parallel_tool_calls=FLAG, **common, **chat
        ),
        "/v1/responses": object_of(
            ["input"], input={"anyOf": [TEXT, array_of(turn, 1)]}, instructions=TEXT, max_output_tokens=integer_of(1),
            model=model, temperature=number_schema(0, 2), top_p=number_schema(1e-6, 1), stream=FLAG, metadata=OBJECT,
            top_logprobs=integer_of(0, 20), store=FLAG,
        ),
        "/v1/embeddings": object_of(["input"], input=prompt, model=model, encoding_format=ENCODING),
        "/tokenize": object_of([], **text) | either,
        "/apply-template": object_of(["messages"], model=model, **chat),
        "/detokenize": object_of(["tokens"], tokens=array_of(token), model=model),
        "/sessions/save": object_of(["name"], name=session, prompt=words, messages=array_of(message, 1)) | either,
        "/sessions/restore": object_of(["name"], name=session),
    }  # fmt: skip


def description(table: Iterable[tuple[str, str, Any, str]], vocab: int, name: str, version: str) -> dict[str, Any]:
    """The document; `table` is the server's: method, path, endpoint, what it is for; `name` is the model's."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    takes, paths = bodies(vocab, name), dict[str, Any]()
    for method, path, endpoint, says in table:
        answers: dict[str, Any] = {"200": {"description": "the answer", "content": media_types(path, path in takes)}}
        answers |= {code: {"description": what, "content": error} for code, what in ERRORS.items()}
        operation: dict[str, Any] = {"summary": says, "operationId": endpoint.__name__, "responses": answers}
        if path in takes:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": takes[path]}}}
        if "{id" in path:
            operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": TEXT}]
        if endpoint.__name__ == "health":
            operation["operationId"] += path.replace("/", "_")
        paths.setdefault(path.replace("{id:path}", "{id}"), {})[method.lower()] = operation
    inner = {"type": "object", "required": ["message", "type", "param", "code"]}
    schemas = {"Error": {"type": "object", "properties": {"error": inner}, "required": ["error"]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastSNN server", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def media_types(path: str, posted: bool) -> dict[str, Any]:
    """What media types a path answers with."""
    kinds = ["application/json"]
    kinds += ["text/event-stream"] if posted and path.startswith("/v1") and "embed" not in path else []
    kinds = ["text/plain"] if path == "/metrics" else [*kinds, "text/html"] if path == "/" else kinds
    return {kind: {} for kind in kinds}
