"""Tools: offered to the model by its chat template, and its calls read out of what it writes.

Where a template has no place for tools (it renders the same text without them), they are described in a system message,
and earlier calls are written into the turns, in the form that most models were trained on::

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bern"}}
    </tool_call>

With ``tool_choice`` "required" or a named function, the answer is one such object, held to the function's parameters
by a grammar. With "auto" the model writes freely: calls between the tags, or an answer that is but such an object.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import attrs

from fastsnn_serve.api.response_format import NAME, compiled
from fastsnn_serve.engine.grammar import Grammar, Grammars
from fastsnn_serve.http.strict_json import Fields, Invalid
from fastsnn_text.generate import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALL = re.compile(re.escape(OPEN) + r"\s*(.*?)\s*(?:" + re.escape(CLOSE) + r"|\Z)", re.DOTALL)
TOOLS = 128

Table = dict[str, Any]


@attrs.frozen
class Tools:
    """Tools of a request. `forced`: the answer must be a call; `named`: of this one function."""

    offered: tuple[Table, ...]
    forced: bool = False
    named: str | None = None

    def names(self) -> set[str]:
        """Of all functions."""
        return {tool["function"]["name"] for tool in self.offered}

    def grammar(self, grammars: Grammars) -> Grammar:
        """Of one call."""
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": tool["function"].get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in self.offered
            if self.named in (None, tool["function"]["name"])
        ]
        return compiled(grammars, calls[0] if len(calls) == 1 else {"anyOf": calls}, "tools")


def read_tools(fields: Fields) -> Tools | None:
    """tools, tool_choice, parallel_tool_calls; None where none is offered, or none may be called."""
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if fields.left.get(old) not in (None, [], "none", "auto"):
            raise Invalid(f"{old} is not supported: use {new}", old, "unsupported_parameter")
    rows, choice = fields.take("tools"), fields.take("tool_choice")
    fields.flag("parallel_tool_calls")
    if rows is not None and (not isinstance(rows, list) or len(rows) > TOOLS):
        raise fields.wrong("tools", f"a list of up to {TOOLS} functions", rows)
    offered = tuple(tool(row, f"tools[{i}]") for i, row in enumerate(rows or ()))
    names = [row["function"]["name"] for row in offered]
    if len(set(names)) < len(names):
        raise fields.wrong("tools", "functions with different names", names)
    named = None
    if isinstance(choice, dict):
        outer = Fields(choice, "tool_choice")
        if (kind := outer.take("type")) != "function":
            raise outer.wrong("type", '"function"', kind)
        inner = Fields(outer.take("function"), "tool_choice.function")
        named = inner.text("name")
        if named not in names:
            raise inner.wrong("name", f"one of the tools ({', '.join(names) or 'there are none'})", named)
        inner.done({})
        outer.done({})
    elif choice not in (None, "none", "auto", "required"):
        raise fields.wrong("tool_choice", '"none", "auto", "required" or {"type": "function", "function": …}', choice)
    if choice == "required" and not offered:
        raise fields.wrong("tool_choice", '"none" or "auto", since there are no tools', choice)
    if not offered or choice == "none":
        return None
    return Tools(offered, choice == "required" or named is not None, named)


def tool(row: Any, where: str) -> Table:
    """One function."""
    outer = Fields(row, where)
    if (kind := outer.take("type")) != "function":
        raise outer.wrong("type", '"function"', kind)
    inner = Fields(outer.take("function"), f"{where}.function")
    name, says, parameters = inner.text("name"), inner.text("description"), inner.take("parameters")
    inner.flag("strict")
    inner.done({})
    outer.done({"cache_control": ({"type": "ephemeral"},)})
    if name is None or not NAME.fullmatch(name):
        raise inner.wrong("name", "1 to 64 letters, digits, '_' and '-'", name)
    if parameters is not None and not isinstance(parameters, dict):
        raise inner.wrong("parameters", "an object, a JSON Schema", parameters)
    made: Table = {"name": name} | ({} if says is None else {"description": says})
    return {"type": "function", "function": made | {"parameters": parameters or {"type": "object", "properties": {}}}}


def described(rows: list[Table], tools: Tools) -> list[Table]:
    """Messages for a template that knows no tools: a system message describes them, calls and results are text."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools.offered)
    says = (
        "You may call functions. Each line is one of them:\n<tools>\n" + lines + "\n</tools>\nTo call one, write\n"
        f'{OPEN}\n{{"name": <its name>, "arguments": <an object that follows its parameters>}}\n{CLOSE}'
    )
    out = [turn_with_calls(row) for row in rows]
    if out and out[0]["role"] in ("system", "developer"):
        return [out[0] | {"content": f"{out[0].get('content') or ''}\n\n{says}"}, *out[1:]]
    return [{"role": "system", "content": says}, *out]


def turn_with_calls(row: Table) -> Table:
    """A turn that called tools, with the calls in its text."""
    calls = row.get("tool_calls")
    if not calls:
        return row
    texts = [f"{OPEN}\n{json.dumps(one['function'], ensure_ascii=False)}\n{CLOSE}" for one in calls]
    kept = {k: v for k, v in row.items() if k != "tool_calls"}
    return kept | {"content": "\n".join([*filter(None, [row.get("content")]), *texts])}


def calls_in(text: str, tools: Tools) -> tuple[str, list[Table]]:
    """``(text without its calls, calls in OpenAI's form)``; what is no call of a tool that was offered stays text."""
    stripped = text.strip()
    if stripped.startswith("{"):
        found = parse_tool_call(stripped, tools)
        return ("", [found]) if found else (text, [])
    calls, kept, at = list[Table](), list[str](), 0
    for match in CALL.finditer(text):
        found = parse_tool_call(match[1], tools)
        if found:
            calls.append(found)
            kept.append(text[at : match.start()])
            at = match.end()
    return ("".join([*kept, text[at:]]).strip(), calls) if calls else (text, [])


def parse_tool_call(text: str, tools: Tools) -> Table | None:
    """A call, or None where this is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = found.get("name") if isinstance(found, dict) else None
    if not isinstance(name, str) or name not in tools.names():
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    made = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": made}


class Watch:
    """Of a streamed answer: lets text through that cannot be part of a call, and reads the calls at the end."""

    def __init__(self, tools: Tools) -> None:
        self.tools, self.held, self.said = tools, "", False

    def push(self, text: str) -> str:
        """What may be said now."""
        self.held += text
        start = self.held.lstrip()
        if OPEN in self.held or (not self.said and (not start or start.startswith("{"))):
            place = self.held.find(OPEN)
            out = self.held[:place] if place > 0 and not start.startswith("{") else ""
        else:
            out = self.held[: len(self.held) - overlap(self.held, (OPEN,))]
        self.held = self.held[len(out) :]
        self.said = self.said or bool(out.strip())
        return out

    def close(self) -> tuple[str, list[Table]]:
        """The rest of the text, and the calls."""
        return calls_in(self.held, self.tools)
