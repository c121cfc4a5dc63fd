"""``/v1/responses``, for text: a request becomes a chat, its answer a response object, streamed as typed events.

Nothing is stored: `store` has no effect, and `previous_response_id` is refused.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastsnn_serve.engine.streams import CompletionDelta
from fastsnn_serve.http.protocol import CompletionRequest, RequestContext, chat
from fastsnn_serve.http.replies import Reply
from fastsnn_serve.http.strict_json import Fields, Invalid, dumps
from fastsnn_text import Tokenizer

PARTS = ("input_text", "output_text", "text")
RESPONSES_HARMLESS: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "parallel_tool_calls": (True, False),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_retention": (),
    "reasoning": (),
    "service_tier": ("auto", "default"),
    "store": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled", "auto"),
}


def response(body: Any, context: RequestContext) -> tuple[CompletionRequest, dict[str, Any]]:
    """``(request, what the response object says back)`` of a body of ``/v1/responses``."""
    fields = Fields(body)
    asked: dict[str, Any] = {"messages": input_messages(fields)}
    said = {"instructions": fields.left.get("instructions")}
    if (text := fields.text("instructions")) is not None:
        asked["messages"] = [{"role": "system", "content": text}, *asked["messages"]]
    most = fields.integer("max_output_tokens", None, 1)
    if most is not None:
        asked["max_completion_tokens"] = most
    for name in ("model", "temperature", "top_p", "top_k", "seed", "user", "metadata", "safety_identifier",
                 "prompt_cache_key", "stream"):  # fmt: skip
        if (value := fields.take(name)) is not None:
            asked[name] = value
    form: dict[str, Any] = {"type": "text"}
    if (table := fields.take("text")) is not None:
        inner = Fields(table, "text")
        form = inner.take("format") or form
        inner.done({"verbosity": ("medium",)})
        asked["response_format"] = form
    top = fields.integer("top_logprobs", None, 0, 20)
    if top:
        asked |= {"logprobs": True, "top_logprobs": top}
    if (table := fields.take("stream_options")) is not None:
        Fields(table, "stream_options").done({"include_obfuscation": (True, False)})
    fields.done(RESPONSES_HARMLESS)
    wanted = chat(asked, context)
    sampling = wanted.params.sampling
    said |= {
        "max_output_tokens": most, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "text": {"format": form}, "metadata": asked.get("metadata") or {},
    }  # fmt: skip
    return wanted, said


def input_messages(fields: Fields) -> list[dict[str, Any]]:
    """`input`: a text, or a list of messages."""
    given = fields.take("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fields.wrong("input", "a text or a list of messages", given)
    out = []
    for i, row in enumerate(given):
        inner = Fields(row, f"input[{i}]")
        kind, role, content = inner.take("type"), inner.take("role"), inner.take("content")
        if kind not in (None, "message"):
            raise inner.wrong("type", '"message" (this server reads no other items)', kind)
        inner.text("id")
        inner.done({"status": ("completed", "incomplete", "in_progress"), "phase": ()})
        if isinstance(content, list):
            content = [content_part(one, f"input[{i}].content[{j}]") for j, one in enumerate(content)]
        out.append({"role": role, "content": content})
    return out


def content_part(row: Any, where: str) -> dict[str, Any]:
    """A content part."""
    inner = Fields(row, where)
    kind, text = inner.take("type"), inner.text("text")
    if kind not in PARTS:
        raise inner.wrong("type", '"input_text" or "output_text" (this server reads no other parts)', kind)
    inner.take("annotations")
    inner.take("logprobs")
    inner.done({})
    return {"type": "text", "text": text}


class ResponseReply(Reply):
    """A response object, whole or as events: ``event: TYPE``, numbered."""

    last = b""

    def __init__(
        self, wanted: CompletionRequest, name: str, tokenizer: Tokenizer, fingerprint: str, said: dict[str, Any]
    ) -> None:
        super().__init__(wanted, name, tokenizer, fingerprint)
        self.said, self.item = said, f"msg_{uuid.uuid4().hex}"
        self.id, self.number, self.texts = f"resp_{uuid.uuid4().hex}", 0, list[str]()
        self.tokens: list[Any] = []
        self.finished: str | None = None

    def object(self, status: str, usage: dict[str, Any] | None = None, output: Any = (), error: Any = None) -> Any:
        """The response object."""
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        used = usage and {
            "input_tokens": usage["prompt_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }  # fmt: skip
        return {
            "id": self.id, "object": "response", "created_at": self.head["created"], "status": status,
            "background": False, "error": error, "incomplete_details": cut, "model": self.head["model"],
            "output": list(output), "parallel_tool_calls": False, "previous_response_id": None, "store": False,
            "tool_choice": "none", "tools": [], "truncation": "disabled", "usage": used,
        } | self.said  # fmt: skip

    def content(self, text: str, tokens: Any) -> dict[str, Any]:
        """The text part."""
        found = self.logprobs(tokens)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": found["content"] if found else []}

    def message(self, text: str, tokens: Any, status: str) -> dict[str, Any]:
        """The one item of the output."""
        parts = [] if status == "in_progress" else [self.content(text, tokens)]
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": parts}

    def whole(self, choices: list[CompletionDelta], usage: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        status = "incomplete" if choices[0].finish == "length" else "completed"
        return self.object(status, usage, [self.message(choices[0].text, choices[0].tokens, status)])

    def numbered(self, kind: str, **fields: Any) -> dict[str, Any]:
        """One event."""
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1} | fields

    def event(self, data: dict[str, Any]) -> bytes:
        """Its type stands before it, too."""
        return b"event: " + str(data["type"]).encode() + b"\ndata: " + dumps(data) + b"\n\n"

    def opening(self) -> list[dict[str, Any]]:
        """Created, in progress, an item with a part."""
        at = {"output_index": 0}
        return [
            self.numbered("response.created", response=self.object("in_progress")),
            self.numbered("response.in_progress", response=self.object("in_progress")),
            self.numbered("response.output_item.added", item=self.message("", (), "in_progress"), **at),
            self.numbered("response.content_part.added", **self.place(), part=self.content("", ())),
        ]

    def place(self) -> dict[str, Any]:
        """Of the one text part."""
        return {"item_id": self.item, "output_index": 0, "content_index": 0}

    def chunks(self, index: int, delta: CompletionDelta) -> list[dict[str, Any]]:
        """The text that was added."""
        self.texts.append(delta.text)
        self.tokens += delta.tokens
        self.finished = delta.finish
        if not delta.text:
            return []
        found = self.content(delta.text, delta.tokens)["logprobs"]
        return [self.numbered("response.output_text.delta", **self.place(), delta=delta.text, logprobs=found)]

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """Everything once more, whole."""
        status, text = "incomplete" if self.finished == "length" else "completed", "".join(self.texts)
        whole, item = self.content(text, self.tokens), self.message(text, self.tokens, status)
        return [
            self.numbered("response.output_text.done", **self.place(), text=text, logprobs=whole["logprobs"]),
            self.numbered("response.content_part.done", **self.place(), part=whole),
            self.numbered("response.output_item.done", item=item, output_index=0),
            self.numbered(f"response.{status}", response=self.object(status, usage, [item])),
        ]

    def failed(self, error: dict[str, Any]) -> dict[str, Any]:
        """A response that failed."""
        what = {"code": "server_error", "message": error["error"]["message"]}
        return self.numbered("response.failed", response=self.object("failed", None, (), what))


def embedding_request(body: Any, context: RequestContext) -> tuple[list[list[int]], str]:
    """``(ids of each text, "float" or "base64")`` of a body of ``/v1/embeddings``."""
    from fastsnn_serve.http.protocol import check_model, read_prompts

    fields = Fields(body)
    check_model(fields, context)
    if fields.left.get("input") is None:
        raise Invalid("input is missing", "input", "missing_required_parameter")
    ids, _ = read_prompts(fields.take("input"), context, "input")
    form = fields.take("encoding_format")
    if form not in (None, "float", "base64"):
        raise fields.wrong("encoding_format", '"float" or "base64"', form)
    fields.done({"dimensions": ()})
    longest = max(map(len, ids))
    if context.longest is not None and longest > context.longest:
        says = f"{longest} tokens; this model was made for {context.longest}"
        raise Invalid(says, "input", "context_length_exceeded")
    return ids, form or "float"
