"""Where text comes from: the hub, FASTSNN_DATA, local files, `datasets` objects, Python's own documentation.

`documents(source)` gives the training and the held-out texts as lists of documents and says what was taken: a name
resolves on the hub when there is a network, otherwise under FASTSNN_DATA, otherwise the error says both.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from fastsnn_core.errors import FastSNNError

END = "<|endoftext|>"
READABLE = (".txt", ".md", ".text", ".jsonl", ".json", ".parquet")


class DataError(FastSNNError):
    """A source that cannot be read: says what was tried and what is possible."""


@attrs.frozen
class Corpus:
    """Documents to train on, documents held out (may be empty), and what they are, in words.

    Both can be read more than once. `endless` ones (a `datasets` IterableDataset) are never held as a whole.
    """

    train: Iterable[str]
    held_out: Iterable[str] = ()
    note: str = ""
    endless: bool = False


def documents(source: Any, field: str = "text", streaming: bool = False) -> Corpus:
    """A corpus from a name (streamed from the hub if asked for), a path, or a `datasets` object or dict of them."""
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, str | Path):
        return from_datasets(source, field, "a datasets object")
    text = str(source)
    if text.startswith("builtin:"):
        return builtin(text.removeprefix("builtin:"))
    if Path(text).exists():
        return from_path(Path(text), field)
    if isinstance(source, Path) or re.match(r"[./~\\]", text) or Path(text).suffix in READABLE:
        raise DataError(f"no file or folder {text!r}")
    return from_name(text, field, streaming)


def builtin(name: str) -> Corpus:
    """``builtin:pydoc``: the prose of Python's own documentation topics, on every machine that has Python."""
    if name != "pydoc":
        raise DataError(f"no built-in corpus {name!r}; there is builtin:pydoc")
    from pydoc_data.topics import topics

    texts = [topics[key] for key in sorted(topics)]
    return Corpus(texts, note=f"Python's documentation topics, {sum(map(len, texts)) // 1000} kB")


def from_path(path: Path, field: str) -> Corpus:
    """A file, or every readable file of a folder; files named like train/valid/test are taken as such."""
    if path.is_file():
        return Corpus(Files((path,), field), note=str(path))
    files = sorted(p for p in path.rglob("*") if p.suffix in READABLE and p.is_file())
    if not files:
        raise DataError(f"{path} holds no {', '.join(READABLE)} file")
    splits: dict[str, list[Path]] = {"train": [], "valid": [], "test": [], "": []}
    for file in files:
        found = re.search(r"train|valid|dev|test", file.stem.lower())
        splits[{"dev": "valid"}.get(found[0], found[0]) if found else ""].append(file)
    for file in splits[""] if splits["train"] or splits["valid"] or splits["test"] else ():
        if file.stem.upper() in ("SOURCE", "README", "LICENSE"):
            continue
        splits["train"].append(file)
    note = str(path)
    if not any(splits[s] for s in ("train", "valid", "test")):
        train, held = files, []
    elif splits["train"]:
        train, held = splits["train"], splits["valid"] or splits["test"]
    else:
        train, held = splits["valid"] or splits["test"], splits["test"] if splits["valid"] else []
        names = [", ".join(f.name for f in group) or "none" for group in (train, held)]
        note += f": there is no train split; training on {names[0]}, held out: {names[1]}"
    return Corpus(Files(tuple(train), field), Files(tuple(held), field), note)


@attrs.frozen
class Files:
    """Documents of files, read as they are needed."""

    paths: tuple[Path, ...]
    field: str

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            yield from read(path, self.field)


def read(path: Path, field: str) -> Iterator[str]:
    """Documents of one file: a text is one (or several, cut at <|endoftext|>); JSON lines and parquet one a row."""
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise DataError(f"{path} needs pyarrow: pip install 'fastsnn-train[data]'") from None
        for batch in parquet.ParquetFile(path).iter_batches():
            rows = batch.to_pydict()
            if field not in rows:
                raise DataError(f"{path} has no column {field!r}; columns: {', '.join(rows)}")
            yield from filter(None, rows[field])
    elif path.suffix in (".jsonl", ".json"):
        yield from read_json(path, field)
    else:
        yield from (part for part in utf8(path).split(END) if part.strip())


def utf8(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from None


def read_json(path: Path, field: str) -> Iterator[str]:
    """Rows of a JSON-lines file, line by line, or of one JSON list."""
    with path.open("rb") as file:
        is_list = file.read(64).lstrip().startswith(b"[")
    for n, row in list_rows(path) if is_list else line_rows(path):
        value = row.get(field) if isinstance(row, dict) else row
        if not isinstance(value, str):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{path}:{n}: no text field {field!r}; it has {has}")
        if value:
            yield value


def line_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """``(line number, row)`` of JSON lines."""
    with path.open(encoding="utf-8") as file:
        try:
            for n, line in enumerate(file, 1):
                if line.strip():
                    yield n, json.loads(line)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 text: {error}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{n}: no JSON: {error}") from None


def list_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """``(place, row)`` of one JSON list."""
    try:
        yield from enumerate(json.loads(utf8(path)), 1)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: no JSON: {error}") from None


def from_datasets(data: Any, field: str, note: str) -> Corpus:
    """A `datasets` Dataset, IterableDataset or dict of them; any iterable of rows or strings."""
    if isinstance(data, dict) or hasattr(data, "keys"):
        held = next((data[name] for name in ("validation", "valid", "test") if name in data), ())
        if "train" not in data:
            raise DataError(f"{note} has no train split; splits: {', '.join(data)}")
        return Corpus(Rows(data["train"], field), Rows(held, field), note, endless(data["train"]))
    if not hasattr(data, "__iter__"):
        raise DataError(f"cannot read text from a {type(data).__name__}; give a name, a path or a datasets object")
    if iter(data) is data:  # can be read once only
        data = list(data)
    return Corpus(Rows(data, field), note=note, endless=endless(data))


def endless(data: Any) -> bool:
    """Is it read as it comes (a `datasets` IterableDataset)?"""
    return type(data).__module__.split(".")[0] == "datasets" and not hasattr(data, "__len__")


@attrs.frozen
class Rows:
    """Texts of a dataset's rows, read as they are needed."""

    data: Any
    field: str

    def __iter__(self) -> Iterator[str]:
        for row in self.data:
            value = row if isinstance(row, str) else row.get(self.field) if isinstance(row, dict) else None
            if not isinstance(value, str):
                has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise DataError(f"rows have no text field {self.field!r}; they have {has}")
            if value:
                yield value


def from_name(name: str, field: str, streaming: bool = False) -> Corpus:
    """A dataset by name: on the hub if it answers, else a folder of FASTSNN_DATA."""
    tried = []
    if hub_answers():
        try:
            return from_hub(name, field, streaming)
        except ImportError:
            raise DataError(f"{name!r} needs the datasets package: pip install 'fastsnn-train[data]'") from None
        except Exception as error:
            tried.append(f"the hub answered {type(error).__name__}: {str(error).splitlines()[0]}")
    else:
        tried.append("the Hugging Face hub does not answer (no network, or HF_HUB_OFFLINE is set)")
    root = os.environ.get("FASTSNN_DATA")
    if not root:
        tried.append("FASTSNN_DATA is not set")
    else:
        for folder in sorted(Path(root).iterdir()) if Path(root).is_dir() else ():
            if folder.is_dir() and squeeze(folder.name) in {squeeze(part) for part in name.split("/")}:
                return from_path(folder, field)
        tried.append(f"FASTSNN_DATA={root} has no folder for it")
    raise DataError(f"no dataset {name!r}: " + "; ".join(tried) + ". Give a file, a folder, or builtin:pydoc")


def squeeze(name: str) -> str:
    """``wikitext-2-raw-v1`` and ``wikitext2`` are the same."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(-raw)?-v\d+$|-raw$", "", name.lower()))


@cache
def hub_answers() -> bool:
    """Does the hub answer within two seconds? (Its own client would retry for half a minute.)"""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") or os.environ.get("HF_DATASETS_OFFLINE", "0") not in (
        "",
        "0",
    ):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((endpoint.hostname or "", endpoint.port or 443), timeout=2):
            return True
    except OSError:
        return False


def from_hub(name: str, field: str, streaming: bool = False) -> Corpus:
    """``name/config`` or ``organisation/name`` on the hub."""
    from datasets import load_dataset

    first, _, second = name.partition("/")
    try:
        data = load_dataset(first, second or None, streaming=streaming)
    except Exception:
        if not second:
            raise
        data = load_dataset(name, streaming=streaming)
    return from_datasets(data, field, f"{name} from the Hugging Face hub")
