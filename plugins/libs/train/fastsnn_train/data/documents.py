"""Documents of a corpus: texts, texts with a loss mask, chats; and what was skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from fastsnn_core.errors import FastSNNError


class DataError(FastSNNError):
    """A source cannot be read; the message says what was tried and what is possible."""


@attrs.frozen
class Spans:
    """A text in parts. Only the tokens of parts marked True are targets of the loss; the others are context."""

    parts: tuple[tuple[str, bool], ...]


@attrs.frozen
class Chat:
    """A conversation, written by the tokenizer's chat template. The first `context` messages are no targets."""

    messages: tuple[dict[str, Any], ...]
    context: int = 0


Document = str | Spans | Chat


def plain_text(document: Document) -> str:
    """The whole text of a document: for training a tokenizer, and for telling documents apart."""
    if isinstance(document, str):
        return document
    if isinstance(document, Spans):
        return "".join(text for text, _ in document.parts)
    return "\n".join(str(message["content"]) for message in document.messages)


def identity(document: Document) -> bytes:
    """Bytes for a cache key: different for different documents."""
    told = document if isinstance(document, str) else repr(document)
    return told.encode("utf-8", "surrogatepass")


@attrs.define
class Omitted:
    """What was skipped: files by name with the reason, and the number of rows per reason in the last pass."""

    files: list[tuple[str, str]] = attrs.field(factory=list)
    rows: int = 0
    null: int = 0
    empty: int = 0

    def begin(self) -> None:
        """A new pass over the rows begins."""
        self.rows = self.null = self.empty = 0

    def of_rows(self) -> str:
        """``3 of 100 rows without text (2 null, 1 empty)``, or nothing."""
        if not self.null + self.empty:
            return ""
        kinds = [f"{n:,} {what}" for n, what in ((self.null, "null"), (self.empty, "empty")) if n]
        return f"{self.null + self.empty:,} of {self.rows:,} rows without text ({', '.join(kinds)})"

    def of_files(self) -> str:
        """``2 files (README.md: no data; a.pdf: unknown ending)``, or nothing."""
        if not self.files:
            return ""
        shown = "; ".join(f"{name}: {why}" for name, why in self.files[:4])
        more = f"; and {len(self.files) - 4} more" if len(self.files) > 4 else ""
        return f"{len(self.files)} file{'s' * (len(self.files) > 1)} ({shown}{more})"

    def __str__(self) -> str:
        return " and ".join(filter(None, (self.of_files(), self.of_rows())))


def name_list(names: Sequence[str], most: int = 12) -> str:
    """Names, separated by commas; long lists are abbreviated."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
