"""Documents of one file, whatever its format: text, JSON, CSV, parquet, arrow; compressed, or in a zip archive."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs

from fastsnn_train.data.compression import SUFFIXES, decoded_chunks, member_name, no_text, open_decompressed
from fastsnn_train.data.documents import DataError, Document, Omitted, name_list
from fastsnn_train.data.rows import RowReader

END = "<|endoftext|>"
FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), "text"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".geoparquet", ".gpq"), "parquet"),
    ".arrow": "arrow",
}
"""Ending to format, as `datasets` has them."""
READABLE = (*FORMATS, *SUFFIXES)


def suffix_of(name: str) -> str:
    """The file extension of the format: the last known one before an extension of a compression."""
    for part in reversed(name.lower().split(".")[1:]):
        if f".{part}" not in SUFFIXES:
            return f".{part}"
    return ""


def format_of(name: str) -> str:
    """text, json, csv, parquet or arrow, by a file's name; "" for other names."""
    return FORMATS.get(suffix_of(name), "")


@attrs.frozen
class File:
    """A file, or a member of a zip archive."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """The name that tells its format."""
        return self.member or self.path.name

    def __str__(self) -> str:
        return member_name(self.path, self.member)


@attrs.frozen
class Files:
    """Documents of files, read as they are needed; `omitted` counts the rows without text."""

    files: tuple[File, ...]
    field: str
    omitted: Omitted = attrs.field(factory=Omitted, eq=False)

    def __iter__(self) -> Iterator[Document]:
        self.omitted.begin()
        for file in self.files:
            yield from read_documents(file, self.field, self.omitted)


def members(path: Path) -> list[File]:
    """What a zip archive holds, hidden files left out."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [item.filename for item in archive.infolist() if not item.is_dir()]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged: {error}") from None
    return [File(path, name) for name in sorted(names)]


def read_documents(file: File, field: str, omitted: Omitted) -> Iterator[Document]:
    """Documents of one file: a text is one document (or several, split at <|endoftext|>), a table has one per row."""
    form = format_of(file.name)
    if not form:
        raise DataError(
            f"{file} has no known ending; known are {', '.join(FORMATS)} (also compressed: {', '.join(SUFFIXES)}). "
            "If it is plain text, name it .txt"
        )
    try:
        if form in ("parquet", "arrow"):
            yield from read_columns(file, form, field, omitted)
            return
        with open_decompressed(file.path, file.member) as stream:
            if form == "text":
                yield from read_delimited(stream, str(file), omitted)
            elif form == "json":
                yield from rows_of_json(stream, file, field, omitted)
            else:
                yield from read_csv(stream, file, field, omitted)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None


def read_delimited(stream: IO[bytes], where: str, omitted: Omitted) -> Iterator[str]:
    """Texts between ``<|endoftext|>``, without blank ones."""
    parts: list[str] = []
    carry = ""  # an end mark may be cut by a chunk's end
    for chunk in itertools.chain(decoded_chunks(stream, where), (END,)):
        *whole, rest = (carry + chunk).split(END)
        for part in whole:
            text = "".join((*parts, part))
            parts.clear()
            if text.strip():
                omitted.rows += 1
                yield text
        cut = max(0, len(rest) - len(END) + 1)
        parts.append(rest[:cut])
        carry = rest[cut:]


def rows_of_json(stream: IO[bytes], file: File, field: str, omitted: Omitted) -> Iterator[Document]:
    """Rows of JSON lines, one by one; or of one JSON list, or of one object of columns."""
    lines = enumerate(json_lines(stream), 1)
    reader = RowReader(field, str(file), omitted)
    first = next(((n, begin, line) for n, (begin, line) in lines if line.strip()), None)
    if first is None:
        return
    n, begin, line = first
    whole = line.lstrip().startswith(b"[")
    if not whole:
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            whole = True  # an object over several lines, or no JSON at all
    rows: Iterable[tuple[str, Any]]
    if whole:
        rest = b"".join(text for _, (_, text) in lines)
        rows = [(f"{file}:{i}", row) for i, row in enumerate(json_whole(line + rest, n, begin, file), 1)]
    else:
        rows = ((f"{file}:{n}", row) for n, row in json_rows(itertools.chain([(n, (begin, line))], lines), file))
    for place, row in rows:
        if (document := reader.document(row, place)) is not None:
            yield document
    reader.finish()


def json_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """``(offset, line)`` of a stream in UTF-8 without its byte order mark."""
    begin = 0
    for n, line in enumerate(stream):
        yield (begin, line) if n else (begin, line.removeprefix(b"\xef\xbb\xbf"))
        begin += len(line)


def json_rows(lines: Iterator[tuple[int, tuple[int, bytes]]], file: File) -> Iterator[tuple[int, Any]]:
    """``(line number, row)``."""
    for n, (begin, line) in lines:
        if line.strip():
            yield n, parse_line(line, n, begin, file)


def parse_line(line: bytes, n: int, begin: int, file: File) -> Any:
    """The value of a line; errors name file and line."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise no_text(f"{file}:{n}", error, begin, "utf-8") from None
    except RecursionError:
        raise DataError(f"{file}:{n}: no JSON: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{file}:{n}: no JSON: {error}") from None


def json_whole(raw: bytes, n: int, begin: int, file: File) -> list[Any]:
    """The rows of a file that is one JSON value: a list, one row, or an object of columns of one length."""
    try:
        found = parse_line(raw, n, begin, file)
    except DataError as error:
        if "Extra data" not in str(error):
            raise
        if raw.lstrip().startswith(b"{"):
            return objects_in_a_row(raw, n, file)
        raise DataError(f'{file}:{n}: expected rows like {{"text": "…"}}, got a list on a line') from None
    if isinstance(found, list):
        return found
    if isinstance(found, dict):
        lists = [v for v in found.values() if isinstance(v, list)]
        if lists and len(lists) == len(found) and len({len(v) for v in lists}) == 1:
            return [dict(zip(found, row)) for row in zip(*lists)]
        if lists and any(isinstance(row, dict) for v in lists for row in v[:1]) and "messages" not in found:
            raise DataError(
                f"{file} is one object with {name_list(list(found))}; write the list of rows alone, or JSON lines"
            )
        return [found]
    raise DataError(f"{file}: expected a list of rows or JSON lines, got {type(found).__name__}")


def objects_in_a_row(raw: bytes, n: int, file: File) -> list[Any]:
    """The rows of a file that writes one object after the other, each over several lines."""
    text, decoder, at, rows = raw.decode("utf-8"), json.JSONDecoder(), 0, []
    while at < len(text):
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError as error:
            line = n + text.count("\n", 0, getattr(error, "pos", at))
            raise DataError(f"{file}:{line}: no JSON: {error}") from None
        rows.append(row)
        at = len(text) - len(text[at:].lstrip())
    return rows


def read_csv(stream: IO[bytes], file: File, field: str, omitted: Omitted) -> Iterator[Document]:
    """Rows of a table with a header; values are strings, unchanged."""
    csv.field_size_limit(2**31 - 1)
    tab = suffix_of(file.name) == ".tsv"
    lines = csv_lines(decoded_chunks(stream, str(file)))
    table = csv.reader(lines, delimiter="\t" if tab else ",", strict=True)
    try:
        header = next((row for row in table if row), None)
        if header is None:
            return
        reader = RowReader(field, str(file), omitted, header)
        for row in table:
            if not row:
                continue
            if len(row) > len(header):
                raise DataError(f"{file}:{table.line_num}: {len(row)} cells, the header has {len(header)}")
            if (document := reader.document(dict(zip(header, row)), f"{file}:{table.line_num}")) is not None:
                yield document
    except csv.Error as error:
        raise DataError(f"{file}:{table.line_num}: no CSV: {error}") from None


def csv_lines(chunks: Iterator[str]) -> Iterator[str]:
    """Lines, with their ends."""
    left = ""
    for chunk in chunks:
        *whole, left = (left + chunk).split("\n")
        yield from (line + "\n" for line in whole)
    if left:
        yield left


def read_columns(file: File, form: str, field: str, omitted: Omitted) -> Iterator[Document]:
    """Rows of parquet and arrow files; only the columns that are needed are read."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{file} needs pyarrow: pip install 'fastsnn-train[data]'") from None
    with contextlib.ExitStack() as stack:
        try:
            plain = not file.member and not any(file.name.lower().endswith(s) for s in SUFFIXES)
            stream: Any = (
                file.path
                if plain
                else pa.py_buffer(stack.enter_context(open_decompressed(file.path, file.member)).read())
            )
            if form == "parquet":
                table = parquet.ParquetFile(stream if plain else pa.BufferReader(stream))
                reader = RowReader(field, str(file), omitted, table.schema_arrow.names)
                batches = table.iter_batches(columns=list(reader.form))
            else:
                source = stack.enter_context(pa.memory_map(str(stream)) if plain else pa.BufferReader(stream))
                table = arrow_table(pa, source)
                reader = RowReader(field, str(file), omitted, table.schema.names)
                batches = (batch.select(list(reader.form)) for batch in arrow_batches(table))
            n = 0
            for batch in batches:
                for row in batch.to_pylist():
                    n += 1
                    if (document := reader.document(row, f"{file}, row {n}")) is not None:
                        yield document
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
                raise
            raise DataError(f"{file} is no {form} file, or damaged: {str(error).splitlines()[0]}") from None


def arrow_table(pa: Any, source: Any) -> Any:
    """A reader of the IPC stream (as `datasets` writes it) or file format."""
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source)


def arrow_batches(table: Any) -> Iterator[Any]:
    """Record batches of either format."""
    if hasattr(table, "num_record_batches"):
        yield from (table.get_batch(i) for i in range(table.num_record_batches))
    else:
        yield from table
