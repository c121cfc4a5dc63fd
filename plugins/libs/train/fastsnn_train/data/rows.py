"""From a row of a table (JSON line, CSV, parquet, `datasets`) to a document: which columns are used, and how.

Three forms, as the trainers of the field know them: a column of text; a column of messages (a chat); a prompt and a
completion, of which only the completion is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fastsnn_train.data.documents import Chat, DataError, Document, Omitted, Spans, name_list

TEXT = "text"  # the default column
CHATS = ("messages", "conversations", "conversation")
PAIR = ("prompt", "completion")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}


class RowReader:
    """Turns the rows of one source into documents; rows without text are counted in `omitted`.

    `field` names the column; ``a+b`` means a prompt column and the completion behind it. Where it is the default
    ``text`` and there is no such column, a column of messages or a prompt and a completion are taken, if that is the
    only possibility.
    """

    def __init__(
        self, field: str, where: str, omitted: Omitted, columns: Iterable[str] | None = None, said: bool = True
    ) -> None:
        self.field, self.where, self.omitted = field, where, omitted
        self.pair = tuple(part.strip() for part in field.split("+")) if "+" in field else ()
        self.form: tuple[str, ...] = ()  # the columns taken
        self.seen: dict[str, None] = {}  # every column that was met
        if len(self.pair) > 2 or not all(self.pair or (field,)):
            raise DataError(f"text_field {field!r} must name one column, or two as 'prompt+completion'")
        if columns is not None:
            self.seen = dict.fromkeys(columns)
            self.form = self.choose(list(self.seen))
            if not self.form:
                raise self.absent()

    def choose(self, columns: list[str]) -> tuple[str, ...]:
        """The columns to read; none where these do not fit. Several possibilities are an error that lists them."""
        wanted = self.pair or (self.field,)
        if all(name in columns for name in wanted):
            return wanted
        if self.field != TEXT:
            return ()
        forms = [(name,) for name in CHATS if name in columns] + ([PAIR] if set(PAIR) <= set(columns) else [])
        if len(forms) > 1:
            names = ", ".join(repr("+".join(form)) for form in forms)
            raise DataError(f"{self.where}: several columns could be the text; set text_field to one of {names}")
        return forms[0] if forms else ()

    def absent(self) -> DataError:
        """No row has the column."""
        wanted = " and ".join(map(repr, self.pair)) or repr(self.field)
        return DataError(
            f"{self.where}: no text field {wanted}; they have {name_list(list(self.seen))}: set text_field to the "
            "column of the text, or to 'prompt+completion'"
        )

    def document(self, row: Any, place: str) -> Document | None:
        """The document of a row; None (counted) where it holds no text."""
        self.omitted.rows += 1
        if isinstance(row, str):
            return self.text(row)
        if is_null(row):
            self.omitted.null += 1
            return None
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: expected a row with a field {self.field!r}, got {kind(row)}")
        names = [str(name) for name in row]
        if not self.form:
            self.seen |= dict.fromkeys(names)
            self.form = self.choose(names)
        if not self.form or any(name not in row for name in self.form):
            self.omitted.null += 1  # other rows have it: a missing field is null, as `datasets` reads it
            return None
        values = [row[name] for name in self.form]
        if any(is_null(value) for value in values):
            self.omitted.null += 1
            return None
        return self.built(values, place)

    def built(self, values: list[Any], place: str) -> Document | None:
        """A document of the values of the chosen columns."""
        if is_chat(values[0]):
            turns = [role_messages(value, f"{place}: field {name!r}") for name, value in zip(self.form, values)]
            found = tuple(message for turn in turns for message in turn)
            if not found:
                self.omitted.empty += 1
                return None
            return Chat(found, len(turns[0]) if len(turns) > 1 else 0)
        for name, value in zip(self.form, values):
            if not isinstance(value, str):
                raise DataError(f"{place}: field {name!r} holds {kind(value)}, not text")
        if len(values) == 1:
            return self.text(values[0])
        if not any(values):
            self.omitted.empty += 1
            return None
        return Spans(((values[0], False), (values[1], True)))

    def text(self, value: str) -> str | None:
        """A text; an empty one is counted and left out."""
        if not value:
            self.omitted.empty += 1
            return None
        return value

    def finish(self) -> None:
        """All rows were read; where none had the column, that is an error."""
        if not self.form and self.seen:
            raise self.absent()


def is_null(value: Any) -> bool:
    """None, or the NaN that stands for it in tables."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_chat(value: Any) -> bool:
    """Messages: a list of tables, or a table of lists (as `datasets` stores sequences of tables)."""
    if isinstance(value, Mapping):
        return ("role" in value and "content" in value) or ("from" in value and "value" in value)
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def role_messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Messages with a role and a content each; ShareGPT's from and value are read as these."""
    if isinstance(value, Mapping):
        columns = {name: list(rows) for name, rows in value.items() if isinstance(rows, list | tuple)}
        n = max(map(len, columns.values()), default=0)
        value = [{name: rows[i] for name, rows in columns.items() if i < len(rows)} for i in range(n)]
    if not is_chat(value):
        raise DataError(f"{where} holds {kind(value)}, not messages")
    out = []
    for n, item in enumerate(value):
        role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        if not isinstance(role, str):
            raise DataError(f"{where}, message {n + 1} has no role; it has {name_list(list(map(str, item)))}")
        if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if content is not None and not isinstance(content, str):
            raise DataError(f"{where}, message {n + 1}: its content is {kind(content)}, not text")
        rest = {k: v for k, v in item.items() if k not in ("role", "from", "content", "value") and not is_null(v)}
        out.append({"role": ROLES.get(role, role), "content": content or ""} | rest)
    return out


def kind(value: Any) -> str:
    """A value in words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a truth value ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return f"a table of {name_list(list(map(str, value)), 4)}"
    return "text" if isinstance(value, str) else type(value).__name__
