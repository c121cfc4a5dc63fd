"""``response_format``: text, a JSON object, or JSON that follows a schema."""

from __future__ import annotations

import re
from typing import Any

from fastsnn_core.errors import MissingError
from fastsnn_serve.engine.grammar import Grammar, GrammarError, Grammars
from fastsnn_serve.http.strict_json import Fields, Invalid

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
OBJECT: dict[str, Any] = {"type": "object"}


def compiled(grammars: Grammars, schema: Any, where: str) -> Grammar:
    """The grammar of a schema; what it cannot follow is a mistake of the request."""
    try:
        return grammars.schema(schema)
    except MissingError as error:
        raise Invalid(str(error), where, "unsupported_parameter") from None
    except (GrammarError, RecursionError) as error:
        raise Invalid(f"{where}: this schema cannot be followed: {error}", where, "invalid_value") from None


def read_format(fields: Fields, grammars: Grammars, field: str = "response_format") -> Grammar | None:
    """The grammar that the answer must follow, or None for text. Every schema is followed, `strict` or not."""
    value = fields.take(field)
    if value is None:
        return None
    where = fields.path(field)
    inner = Fields(value, where)
    kind = inner.take("type")
    if kind == "text":
        inner.done({})
        return None
    if kind == "json_object":
        inner.done({})
        return compiled(grammars, OBJECT, where)
    if kind != "json_schema":
        raise inner.wrong("type", '"text", "json_object" or "json_schema"', kind)
    nested = inner.left.get("json_schema")
    table = Fields(inner.take("json_schema"), f"{where}.json_schema") if nested is not None else inner
    schema = read_schema(table)
    if table is not inner:
        inner.done({})
    return compiled(grammars, schema, table.path("schema"))


def read_schema(table: Fields) -> Any:
    """``{"name", "schema", "strict", "description"}``: its schema."""
    name, schema = table.text("name"), table.take("schema")
    table.flag("strict")
    table.text("description")
    table.done({})
    if name is not None and not NAME.fullmatch(name):
        raise table.wrong("name", "1 to 64 letters, digits, '_' and '-'", name)
    if not isinstance(schema, dict):
        raise table.wrong("schema", "an object, a JSON Schema", schema)
    return schema
