"""From chat messages to a prompt: the bundle's own chat template, or a plain one.

Plain, where the bundle has none (``\\n`` ends every line but the last; generation stops at ``\\nUser:``)::

    System: You are brief.
    User: Hello
    Assistant: Hi
    User: Who are you?
    Assistant:

The reply then begins with a space; sent back as a message it is put behind ``Assistant:`` as it is, so that a later
turn's prompt begins with the very tokens of this one.
"""

from __future__ import annotations

from typing import Any

from fastsnn_core.errors import FastSNNError
from fastsnn_serve.http.strict_json import Fields, Invalid, is_text, shown
from fastsnn_text import HuggingFaceTokenizer, Tokenizer

ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
EMPTY: dict[str, tuple[Any, ...]] = {  # what clients send back of an answer, as long as it says nothing
    "tool_calls": ([],), "function_call": (), "refusal": (), "annotations": ([],), "audio": (), "reasoning_content": (),
}  # fmt: skip


class ChatTemplate:
    """Messages to token ids. `source` is a Jinja template in Hugging Face's dialect, run in a sandbox, or None."""

    def __init__(self, tokenizer: Tokenizer, source: str | None) -> None:
        self.tokenizer, self.source = tokenizer, source
        self.stops: tuple[str, ...] = () if source else ("\nUser:",)
        self.jinja = None if source is None else compiled(source)

    def ids(self, messages: Any) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply."""
        text = self.render(checked(messages))
        start = self.tokenizer.start
        return ([] if self.jinja is not None or start is None else [start]) + self.tokenizer.encode(text)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation's text."""
        if self.jinja is None:
            return "\n".join([*map(plain, messages), "Assistant:"])
        from jinja2 import TemplateError

        try:
            text = self.jinja.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None,
                bos_token=special(self.tokenizer, self.tokenizer.start),
                eos_token=special(self.tokenizer, self.tokenizer.end),
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            says = f"the model's chat template refuses these messages: {error}"
            raise Invalid(says, "messages", "invalid_value") from None
        if not is_text(text) or not text:
            raise Invalid("the model's chat template makes no text of these messages", "messages", "invalid_value")
        return text


def plain(message: dict[str, str]) -> str:
    """One line (or more) of the plain template."""
    text = message["content"]
    return f"{ROLES[message['role']]}:{'' if text[:1].isspace() else ' '}{text}"


def compiled(source: str) -> Any:
    """The template; an error names what is wrong with it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not isinstance(source, str):
        raise FastSNNError(f"the bundle's chat_template must be a string, got {type(source).__name__}")

    def refuse(message: str) -> str:
        raise TemplateError(message)

    def today(form: str) -> str:
        import datetime

        return datetime.datetime.now().strftime(form)

    extensions = ["jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals |= {"raise_exception": refuse, "strftime_now": today}
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise FastSNNError(f"the bundle's chat_template is broken: {error}") from None


def special(tokenizer: Tokenizer, token: int | None) -> str:
    """A special token's text, as templates want it."""
    if token is None or not isinstance(tokenizer, HuggingFaceTokenizer):
        return ""
    return tokenizer.native.id_to_token(token) or ""


def template_source(model: Any, tokenizer: Any) -> str | None:
    """The bundle's chat template: meta.json's ``chat_template``, or its tokenizer's, or the tokenizer object's own."""
    meta = getattr(model, "meta", {})
    places = (meta, meta.get("tokenizer", {}), {"chat_template": getattr(tokenizer, "chat_template", None)})
    return next((place["chat_template"] for place in places if place.get("chat_template")), None)


def checked(messages: Any) -> list[dict[str, str]]:
    """Messages with a role and a text each; text parts are joined, other parts refused."""
    if messages is None:
        raise Invalid("messages is missing", "messages", "missing_required_parameter")
    if not isinstance(messages, list) or not messages:
        says = f"messages: expected a list of at least one message, got {shown(messages)}"
        raise Invalid(says, "messages", "invalid_value")
    out = []
    for i, message in enumerate(messages):
        fields = Fields(message, f"messages[{i}]")
        role, content, name = fields.take("role"), fields.take("content"), fields.text("name")
        if not isinstance(role, str) or role not in ROLES:
            raise fields.wrong("role", f"one of {', '.join(ROLES)}", role)
        if isinstance(content, list):
            content = "".join(part_text(part, f"messages[{i}].content[{j}]") for j, part in enumerate(content))
        if not is_text(content):
            raise fields.wrong("content", "a string of valid Unicode or a list of text parts", content)
        fields.done(EMPTY)
        out.append({"role": role, "content": content} | ({} if name is None else {"name": name}))
    return out


def part_text(part: Any, where: str) -> str:
    """The text of a content part."""
    fields = Fields(part, where)
    kind, text = fields.take("type"), fields.text("text")
    if kind != "text":
        raise fields.wrong("type", '"text" (this server reads no other parts)', kind)
    if text is None:
        raise fields.wrong("text", "a string", None)
    fields.done({})
    return text
