"""Validates chat messages of a request and renders them with the model's chat template."""

from __future__ import annotations

import json
from typing import Any

from fastsnn_core.moved import renamed
from fastsnn_serve.http.strict_json import Fields, Invalid, excerpt, is_utf8
from fastsnn_text import chat_template
from fastsnn_text.chat_template import ROLES, TemplateError
from fastsnn_text.chat_template import template_of as template_source

__all__ = ["RequestChatTemplate", "template_source", "validate_messages"]

SAID: dict[str, tuple[Any, ...]] = {  # what clients send back of an answer besides its text, and has no effect
    "tool_calls": ([],), "function_call": (), "refusal": (), "annotations": ([],), "audio": (), "reasoning_content": (),
    "reasoning": (),
}  # fmt: skip


class RequestChatTemplate(chat_template.ChatTemplate):
    """The model's chat template for messages of a request; template errors are errors of the request."""

    def text(self, rows: list[dict[str, Any]], **options: Any) -> str:
        """A conversation of checked messages as text, ready for the assistant's reply."""
        try:
            return self.render(rows, **options)
        except TemplateError as error:
            raise Invalid(str(error), "messages", "invalid_value") from None

    def tokens(self, text: str) -> list[int]:
        """Token ids of a rendered conversation."""
        start = self.tokenizer.start
        return ([start] if self.plain and start is not None else []) + self.tokenizer.encode(text)

    def ids(self, messages: Any, **options: Any) -> list[int]:
        """Token ids of a conversation of a request."""
        return self.tokens(self.text(validate_messages(messages), **options))


def validate_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as templates want them: text parts joined, arguments of tool calls as objects; others refused."""
    if messages is None:
        raise Invalid("messages is missing", "messages", "missing_required_parameter")
    if not isinstance(messages, list) or not messages:
        says = f"messages: expected a list of at least one message, got {excerpt(messages)}"
        raise Invalid(says, "messages", "invalid_value")
    return [message(row, f"messages[{i}]") for i, row in enumerate(messages)]


def message(row: Any, where: str) -> dict[str, Any]:
    """One message."""
    fields = Fields(row, where)
    role, content, name = fields.take("role"), fields.take("content"), fields.text("name")
    if not isinstance(role, str) or role not in ROLES:
        raise fields.wrong("role", f"one of {', '.join(ROLES)}", role)
    out: dict[str, Any] = {"role": role}
    if role == "assistant":
        out |= answered(fields)
    elif role == "tool":
        out |= {key: value for key in ("tool_call_id",) if (value := fields.text(key)) is not None}
    if isinstance(content, list):
        content = "".join(part_text(part, f"{where}.content[{j}]") for j, part in enumerate(content))
    if content is None and role == "assistant":  # a turn that only calls tools, or says nothing
        content = None if "tool_calls" in out else ""
    elif not is_utf8(content):
        raise fields.wrong("content", "a string of valid Unicode or a list of text parts", content)
    fields.done(SAID)
    if content is not None:
        out["content"] = content
    return out | ({} if name is None else {"name": name})


def answered(fields: Fields) -> dict[str, Any]:
    """The fields of an assistant turn besides its text."""
    out: dict[str, Any] = {}
    calls = fields.take("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise fields.wrong("tool_calls", "a list", calls)
    if calls:
        out["tool_calls"] = [call(one, f"{fields.where}.tool_calls[{i}]") for i, one in enumerate(calls)]
    for key in ("refusal", "reasoning", "reasoning_content"):
        if (text := fields.text(key)) is not None and key != "refusal":
            out["reasoning_content"] = text
    for key, kind in (("annotations", list), ("audio", dict), ("function_call", dict)):
        value = fields.take(key)
        if value is not None and not isinstance(value, kind):
            raise fields.wrong(key, "a list" if kind is list else "an object", value)
    return out


def call(value: Any, where: str) -> dict[str, Any]:
    """A tool call; its arguments, which OpenAI sends as a string of JSON, as an object."""
    fields = Fields(value, where)
    made: dict[str, Any] = {"type": fields.text("type") or "function"}
    if (number := fields.text("id")) is not None:
        made["id"] = number
    inner = Fields(fields.take("function"), f"{where}.function")
    name, arguments = inner.text("name"), inner.take("arguments")
    if name is None:
        raise inner.wrong("name", "a string", None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise inner.wrong("arguments", "a string of JSON", arguments) from None
    return made | {"function": {"name": name, "arguments": {} if arguments is None else arguments}}


def part_text(part: Any, where: str) -> str:
    """The text of a content part."""
    fields = Fields(part, where)
    kind, text = fields.take("type"), fields.text("text")
    if kind != "text":
        raise fields.wrong("type", '"text" (this server reads no other parts)', kind)
    if text is None:
        raise fields.wrong("text", "a string", None)
    fields.done({"annotations": ([],), "cache_control": ({"type": "ephemeral"},)})
    return text


__getattr__ = renamed(__name__, {"ChatTemplate": "RequestChatTemplate", "checked": "validate_messages"})
