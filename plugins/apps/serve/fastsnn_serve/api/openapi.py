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


def integer(low: int, high: int = 2**31 - 1) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": low, "maximum": high}


def number_schema(low: float, high: float) -> Schema:
    """A number."""
    return {"type": "number", "minimum": low, "maximum": high}


def listed(of: Schema, least: int = 0, most: int | None = None) -> Schema:
    """A list."""
    return {"type": "array", "items": of, "minItems": least} | ({} if most is None else {"maxItems": most})


def fields(required: Iterable[str], **properties: Schema) -> Schema:
    """An object with just these fields."""
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def bodies(vocab: int, name: str) -> dict[str, Schema]:
    """The body of each path that takes one; `name` is the model's."""
    model: Schema = {"enum": [name]}
    token = integer(0, vocab - 1)
    words = {"type": "string", "minLength": 1}
    prompt = {"anyOf": [words, listed(token, 1), listed(words, 1), listed(listed(token, 1), 1)]}
    content = {"anyOf": [TEXT, listed(fields(["type", "text"], type={"const": "text"}, text=TEXT))]}
    called = fields(
        ["function"], id=TEXT, type={"const": "function"}, function=fields(["name"], name=TEXT, arguments=OBJECT)
    )
    message = {"anyOf": [
        fields(["role", "content"], role={"enum": ["system", "developer", "user"]}, content=content, name=TEXT),
        fields(["role"], role={"const": "assistant"}, content=content, name=TEXT, tool_calls=listed(called)),
        fields(["role", "content"], role={"const": "tool"}, content=content, name=TEXT, tool_call_id=TEXT),
    ]}  # fmt: skip
    turn = fields(
        ["role", "content"], role={"enum": ["system", "developer", "user", "assistant"]}, content=content,
        type={"const": "message"},
    )  # fmt: skip
    tool = fields(
        ["type", "function"],
        type={"const": "function"},
        function=fields(
            ["name"], name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, description=TEXT, parameters=OBJECT,
            strict=FLAG,
        ),
    )  # fmt: skip
    form = {
        "anyOf": [
            fields(["type"], type={"enum": ["text", "json_object"]}),
            fields(["type", "json_schema"], type={"const": "json_schema"}, json_schema=fields(
                ["name", "schema"], name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, schema=OBJECT,
                strict=FLAG, description=TEXT)),
        ]
    }  # fmt: skip
    common: dict[str, Schema] = {
        "model": model, "max_tokens": integer(1), "max_completion_tokens": integer(1),
        "temperature": number_schema(0, 2), "top_p": number_schema(1e-6, 1), "top_k": integer(-1),
        "min_p": number_schema(0, 1), "n": integer(1, 128),
        "seed": integer(-(2**63), 2**63 - 1), "presence_penalty": number_schema(-2, 2),
        "frequency_penalty": number_schema(-2, 2),
        "repetition_penalty": number_schema(0.01, 100), "min_tokens": integer(0), "ignore_eos": FLAG,
        "logit_bias": {"type": "object", "additionalProperties": number_schema(-100, 100)},
        "stop": {"anyOf": [words, listed(words, 0, 16)]}, "stream": FLAG, "response_format": form, "user": TEXT,
        "stream_options": fields([], include_usage=FLAG, spikes_every=integer(0, 1024)), "metadata": OBJECT,
    }  # fmt: skip
    chat: dict[str, Schema] = {
        "messages": listed(message, 1), "tools": listed(tool, 0, 128), "documents": listed(OBJECT),
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, fields(
            ["type", "function"], type={"const": "function"}, function=fields(["name"], name=TEXT))]},
        "chat_template_kwargs": OBJECT, "add_generation_prompt": FLAG, "continue_final_message": FLAG,
    }  # fmt: skip
    text = {"prompt": TEXT, "messages": listed(message, 1), "model": model, "add_special_tokens": FLAG}
    either: Schema = {"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    session = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"}
    return {
        "/v1/completions": fields(
            ["prompt"], prompt=prompt, echo=FLAG, logprobs=integer(0, 20), best_of=integer(1, 128), **common
        ),
        "/v1/chat/completions": fields(
            ["messages"], logprobs=FLAG, top_logprobs=integer(0, 20), parallel_tool_calls=FLAG, **common, **chat
        ),
        "/v1/responses": fields(
            ["input"], input={"anyOf": [TEXT, listed(turn, 1)]}, instructions=TEXT, max_output_tokens=integer(1),
            model=model, temperature=number_schema(0, 2), top_p=number_schema(1e-6, 1), stream=FLAG, metadata=OBJECT,
            top_logprobs=integer(0, 20), store=FLAG,
        ),
        "/v1/embeddings": fields(["input"], input=prompt, model=model, encoding_format={"enum": ["float", "base64"]}),
        "/tokenize": fields([], **text) | either,
        "/apply-template": fields(["messages"], model=model, **chat),
        "/detokenize": fields(["tokens"], tokens=listed(token), model=model),
        "/sessions/save": fields(["name"], name=session, prompt=words, messages=listed(message, 1)) | either,
        "/sessions/restore": fields(["name"], name=session),
    }  # fmt: skip


def description(table: Iterable[tuple[str, str, Any, str]], vocab: int, name: str, version: str) -> dict[str, Any]:
    """The document; `table` is the server's: method, path, endpoint, what it is for; `name` is the model's."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    takes, paths = bodies(vocab, name), dict[str, Any]()
    for method, path, endpoint, says in table:
        answers: dict[str, Any] = {"200": {"description": "the answer", "content": content(path, path in takes)}}
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


def content(path: str, posted: bool) -> dict[str, Any]:
    """What media types a path answers with."""
    kinds = ["application/json"]
    kinds += ["text/event-stream"] if posted and path.startswith("/v1") and "embed" not in path else []
    kinds = ["text/plain"] if path == "/metrics" else [*kinds, "text/html"] if path == "/" else kinds
    return {kind: {} for kind in kinds}
