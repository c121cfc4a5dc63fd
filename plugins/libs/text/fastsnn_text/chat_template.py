"""From chat messages to a prompt: the model's own chat template, or a plain one.

Templates are Jinja in Hugging Face's dialect, run in a sandbox; they render what transformers'
``apply_chat_template`` renders: loop controls, ``{% generation %}``, ``tojson``, ``strftime_now``, ``raise_exception``,
tools and documents, several templates by name.

Plain, where the model has none (``\\n`` ends every line but the last; generation stops at ``\\nUser:``)::

    System: You are brief.
    User: Hello
    Assistant: Hi
    User: Who are you?
    Assistant:

The reply then begins with a space; sent back as a message it is put behind ``Assistant:`` as it is, so that a later
turn's prompt begins with the very tokens of this one.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastsnn_core.errors import FastSNNError

ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning; the first is the usual one
TAG = "CONTINUE_FINAL_MESSAGE_TAG "

Messages = Sequence[Mapping[str, Any]]


class TemplateError(FastSNNError):
    """A chat template that is broken, or that refuses these messages."""


class ChatTemplate:
    """Messages to text and token ids, with a tokenizer and its template: one, several by name, or None (plain)."""

    def __init__(self, tokenizer: Any, source: str | Mapping[str, str] | None) -> None:
        self.tokenizer, self.source = tokenizer, source
        self.stops: tuple[str, ...] = () if source else ("\nUser:",)
        table = {} if not source else {"default": source} if isinstance(source, str) else dict(source)
        self.compiled = {name: compiled_template(text) for name, text in table.items()}

    @property
    def plain(self) -> bool:
        """Is it the plain template, since the model has none?"""
        return not self.compiled

    def ids(self, messages: Messages, **options: Any) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply; options as for `render`."""
        text, start = self.render(messages, **options), self.tokenizer.start
        return ([start] if self.plain and start is not None else []) + self.tokenizer.encode(text)

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The conversation's text.

        `template` names one of several ("tool_use" is taken where there are `tools`, else "default");
        `continue_final_message` leaves the last message open; further `variables` reach the template.
        """
        rows: list[dict[str, Any]] = [{k: v for k, v in m.items() if v is not None} for m in messages]
        if not rows:
            raise TemplateError("a conversation needs at least one message")
        if self.plain:
            return render_without_template(rows, continue_final_message, add_generation_prompt)
        if continue_final_message:
            add_generation_prompt = False
            if not isinstance(rows[-1].get("content"), str):
                raise TemplateError("continue_final_message: the last message has no text to go on from")
            final = rows[-1]["content"]
            rows[-1]["content"] = final + TAG
        given = special_tokens(self.tokenizer) | variables
        given |= {"messages": [with_reasoning(row) for row in rows], "add_generation_prompt": add_generation_prompt}
        given |= {"tools": tools and list(tools), "documents": documents and list(documents)}
        text = self.run(self.choose(template, tools), given)
        if continue_final_message:
            place = text.rfind(TAG.strip())
            if place < 0 or final.strip() not in text:
                raise TemplateError(
                    "continue_final_message: the model's chat template does not end with the last message"
                )
            text = text[:place] if text[place : place + len(TAG)] == TAG else text[:place].rstrip()
        return text

    def choose(self, name: str | None, tools: Any) -> Any:
        """The compiled template to use."""
        if name is None and tools is not None and "tool_use" in self.compiled:
            name = "tool_use"
        found = self.compiled.get(name or "default")
        if found is None:
            raise TemplateError(
                f"the model has no chat template {name or 'default'!r}; there are {', '.join(sorted(self.compiled))}"
            )
        return found

    def run(self, template: Any, given: dict[str, Any]) -> str:
        """Render; whatever goes wrong inside is the messages' fault or the template's, and says so."""
        from jinja2 import TemplateError as Broken

        try:
            text = template.render(**given)
        except (Broken, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error}") from None
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise TemplateError("the model's chat template makes no valid Unicode of these messages") from None
        if not text:
            raise TemplateError("the model's chat template makes no text of these messages")
        return text


def render_without_template(rows: list[dict[str, Any]], open_end: bool, ask: bool) -> str:
    """The plain template."""
    lines = []
    for row in rows:
        text = row.get("content") or ""
        if not isinstance(text, str):
            text = "".join(part.get("text", "") for part in text)
        label = ROLES.get(row.get("role", ""), str(row.get("role", "")).capitalize())
        lines.append(f"{label}:{'' if text[:1].isspace() or not text else ' '}{text}")
    return "\n".join(lines if open_end or not ask else [*lines, "Assistant:"])


def with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under every name that templates know."""
    found = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def special_tokens(tokenizer: Any) -> dict[str, str]:
    """Named special tokens, as templates see them."""
    own = getattr(tokenizer, "special_tokens", None)
    return {"bos_token": "", "eos_token": ""} if own is None else dict(own())


def template_of(model: Any, tokenizer: Any) -> Any:
    """The model's chat template: meta.json's ``chat_template``, or its tokenizer's, or the tokenizer object's own."""
    meta = getattr(model, "meta", {})
    places = (meta, meta.get("tokenizer", {}), {"chat_template": getattr(tokenizer, "chat_template", None)})
    return next((place["chat_template"] for place in places if place.get("chat_template")), None)


def compiled_template(source: Any) -> Any:
    """A template; an error names what is wrong with it."""
    from jinja2 import TemplateError as Broken

    if not isinstance(source, str):
        raise TemplateError(f"the chat template must be a string, got {type(source).__name__}")
    try:
        return environment().from_string(source)
    except Broken as error:
        raise TemplateError(f"the model's chat_template is broken: {error}") from None


def environment() -> Any:
    """The sandbox with what transformers puts into it."""
    from jinja2 import TemplateError as Broken
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %} … {% endgeneration %}`` marks what the assistant wrote, for training: passed over."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """A call block, so that what is set inside stays inside."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    def allow(name: Any) -> None:
        """Refuse names with an underscore in front."""
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a chat template cannot store {name!r} in a namespace")

    class Attributes(Namespace):
        """A namespace without access to Python's internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, rest = args[0], args[1:]
            for name in (found := dict(*rest, **kwargs)):
                allow(name)
            Namespace.__init__(self, found)

        def __setitem__(self, name: str, value: Any) -> None:
            allow(name)
            Namespace.__setitem__(self, name, value)

    class Dict:
        """``dict(…)`` without the class's attributes."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            """``dict.fromkeys``."""
            return dict.fromkeys(*args)

    def refuse(message: str) -> str:
        raise Broken(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Attributes,
    }
    return made
