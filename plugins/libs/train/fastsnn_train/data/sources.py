"""Where text comes from: the hub, FASTSNN_DATA, local files, `datasets` objects, Python's own documentation.

`documents(source)` gives the training and the held-out documents, says what was taken and what was left out. A name
resolves on the hub when there is a network, otherwise under FASTSNN_DATA, otherwise the error says both.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from fastsnn_train.data.documents import Chat, DataError, Document, Omitted, Spans, name_list
from fastsnn_train.data.files import READABLE, File, Files, format_of, members
from fastsnn_train.data.folders import is_data, names_by_split, one_format, split_of_name, splits_of
from fastsnn_train.data.frames import rows_of_table
from fastsnn_train.data.rows import RowReader

log = logging.getLogger("fastsnn")
HELD_OUT = ("validation", "valid", "dev", "val", "test", "eval", "evaluation")


@attrs.frozen
class Corpus:
    """Documents to train on, documents held out (may be empty), and what they are, in words.

    Both can be read more than once. `endless` ones (a `datasets` IterableDataset) are never held as a whole.
    """

    train: Iterable[Document]
    held_out: Iterable[Document] = ()
    note: str = ""
    endless: bool = False

    def omitted(self) -> str:
        """The rows without text that the last pass skipped, as a sentence; "" if there were none."""
        counts = [part.omitted.of_rows() for part in (self.train, self.held_out) if isinstance(part, Files | Rows)]
        return "; ".join(filter(None, counts))


def documents(source: Any, field: str = "text", streaming: bool = False) -> Corpus:
    """A corpus from a name (streamed from the hub if asked for), a path, a pattern, texts, or a `datasets` object."""
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, str | Path):
        return from_objects(source, field)
    text = str(source)
    if not text.strip():
        raise DataError("the name of the dataset is empty; give a name, a file, a folder, or builtin:pydoc")
    if text.startswith("builtin:"):
        return builtin_text(text.removeprefix("builtin:"))
    path = Path(text).expanduser()
    if is_there(path):
        return texts_from_path(path, field)
    if re.search(r"[*?\[]", text):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError(f"no file matches {text!r}")
        return from_files(found, field, text)
    if isinstance(source, Path) or re.match(r"[./~\\]", text) or text.lower().endswith(READABLE):
        raise DataError(f"no file or folder {text!r}")
    if "\n" in text or len(text) > 200:
        raise DataError("a text is no name of a dataset; give a list of texts, [text], or a file")
    return from_name(text, field, streaming)


def is_there(path: Path) -> bool:
    """Does a path exist? False for a text that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def builtin_text(name: str) -> Corpus:
    """``builtin:pydoc``: the prose of Python's own documentation topics, on every machine that has Python."""
    if name != "pydoc":
        raise DataError(f"no built-in corpus {name!r}; there is builtin:pydoc")
    from pydoc_data.topics import topics

    texts = [topics[key] for key in sorted(topics)]
    return Corpus(texts, note=f"Python's documentation topics, {sum(map(len, texts)) // 1000} kB")


# -- files --------------------------------------------------------------------------------------------------------


def texts_from_path(path: Path, field: str) -> Corpus:
    """A file, or a folder as the `datasets` library resolves it (`fastsnn_train.data.folders`)."""
    if path.is_file():
        if path.suffix.lower() == ".zip" and not format_of(path.name):
            return from_archive(path, field)
        return from_files([path], field, str(path))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return from_saved(path, field)
    omitted = Omitted()
    return from_splits(splits_of(path, omitted), field, str(path), omitted)


def from_files(paths: list[Path], field: str, note: str) -> Corpus:
    """Files that were named one by one: all of them are training data."""
    files: list[File] = []
    for path in paths:
        is_zip = path.suffix.lower() == ".zip"
        inside = [f for f in members(path) if is_data(f.member, Omitted()) and format_of(f.member)] if is_zip else []
        files += inside or [File(path)]
    return Corpus(Files(tuple(files), field), note=note)


def from_archive(path: Path, field: str) -> Corpus:
    """A zip archive: what it holds, as if it were a folder."""
    omitted = Omitted()
    held = {f.member: f for f in members(path) if is_data(f.member, omitted)}
    if not held:
        raise DataError(f"{path} holds no file that can be read: {omitted.of_files() or 'it is empty'}")
    splits = {s: one_format([(n, held[n]) for n in names], omitted) for s, names in names_by_split(list(held)).items()}
    return from_splits(splits, field, str(path), omitted)


def from_splits(splits: dict[str, list[File]], field: str, note: str, omitted: Omitted) -> Corpus:
    """Training and held-out files of a folder's splits.

    Files of no split are training data where no file is named so; beside named ones they are left out, as `datasets`
    does. Splits of other names (``train_sft``, ``test_sft``) count by the word in them; one without is training data.
    """
    splits = dict(splits)
    loose = splits.pop("", [])
    if "train" not in splits and not loose:
        by_word = {name: split_of_name(name) for name in splits}
        named = [name for name, word in by_word.items() if word == "train"]
        if parts := named or [name for name, word in by_word.items() if not word]:
            note += f": training on {'split' if len(parts) == 1 else 'splits'} {name_list(parts)}"
            word = next((word for word in ("validation", "test") if word in by_word.values()), "")
            held_out = [file for name in splits if word and by_word[name] == word for file in splits[name]]
            rest = {name: files for name, files in splits.items() if name not in parts and by_word[name] != word}
            splits = {"train": [file for name in parts for file in splits[name]], "validation": held_out} | rest
    held = next((splits[name] for name in HELD_OUT if splits.get(name)), [])
    if "train" in splits:
        train = splits["train"]
        omitted.files += [(file.name, "of no split") for file in loose]
    elif loose:
        train = loose
    else:
        groups = [splits[name] for name in HELD_OUT if splits.get(name)] or list(splits.values())
        train, held = groups[0], groups[1] if len(groups) > 1 else []
        names = [name_list([f.name for f in group]) for group in (train, held)]
        note += f": there is no train split; training on {names[0]}, held out: {names[1]}"
    for split, files in splits.items():
        if files is not train and files is not held:
            omitted.files += [(file.name, f"split {split} is not needed") for file in files]
    if omitted.files:
        log.warning("%s: left out %s", note.partition(":")[0], omitted.of_files())
        note += f"; left out {omitted.of_files()}"
    return Corpus(Files(tuple(train), field), Files(tuple(held), field), note)


def from_saved(path: Path, field: str) -> Corpus:
    """A folder that ``save_to_disk`` of the `datasets` library wrote."""
    try:
        from datasets import load_from_disk
    except ImportError:
        raise DataError(f"{path} was written by save_to_disk; that needs: pip install 'fastsnn-train[data]'") from None
    try:
        data = load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path} was written by save_to_disk and cannot be read: {first_line(error)}") from None
    return from_datasets(data, field, str(path))


# -- objects ------------------------------------------------------------------------------------------------------


def from_objects(data: Any, field: str) -> Corpus:
    """A list of texts, of rows or of paths; a `datasets` object; a dict of splits; any other iterable of these."""
    data = rows_of_table(data, field)
    if isinstance(data, dict) or type(data).__module__.split(".")[0] == "datasets" or hasattr(data, "keys"):
        return from_datasets(data, field, "a datasets object")
    if not hasattr(data, "__iter__"):
        raise DataError(f"cannot read text from {named_type(data)}; give a name, a path, texts or a datasets object")
    if iter(data) is data:  # can be read once only
        data = list(data)
    if isinstance(data, list | tuple):
        if not data:
            raise DataError("the list of documents is empty")
        if all(isinstance(item, Path) for item in data):
            if absent := [str(item) for item in data if not item.is_file()]:
                raise DataError(f"no file {name_list(absent)}")
            return from_files(list(data), field, f"{len(data)} files")
        if all(isinstance(item, str) and item.lower().endswith(READABLE) and is_there(Path(item)) for item in data):
            raise DataError(
                f"{name_list(list(data), 3)} are names of files; give Path objects, or a pattern like '*.txt'"
            )
    return Corpus(Rows(data, field, "rows"), note=f"{len(data) if hasattr(data, '__len__') else 'many'} documents")


def named_type(value: Any) -> str:
    """``None`` or ``a Tensor``."""
    return "None" if value is None else f"a {type(value).__name__}"


def from_datasets(data: Any, field: str, note: str) -> Corpus:
    """A `datasets` Dataset, IterableDataset or dict of them."""
    if not (isinstance(data, dict) or hasattr(data, "keys")):
        return Corpus(Rows(data, field, "rows"), note=note, endless=endless(data))
    if "train" not in data:
        raise DataError(f"{note} has no train split; splits: {', '.join(map(str, data))}")
    held = next((name for name in HELD_OUT if name in data), "")
    if rest := [str(name) for name in data if name not in ("train", held)]:
        note += f"; splits left out: {name_list(rest)}"
    train = Rows(data["train"], field, "rows of split train")
    return Corpus(train, Rows(data[held], field, f"rows of split {held}") if held else (), note, endless(data["train"]))


def endless(data: Any) -> bool:
    """Is it read as it comes (a `datasets` IterableDataset)?"""
    return type(data).__module__.split(".")[0] == "datasets" and not hasattr(data, "__len__")


@attrs.frozen
class Rows:
    """Documents of a dataset's rows (or documents as they are), read as they are needed."""

    data: Any
    field: str
    where: str = "rows"
    omitted: Omitted = attrs.field(factory=Omitted, eq=False)

    def __iter__(self) -> Iterator[Document]:
        self.omitted.begin()
        data = self.data.with_format(None) if hasattr(self.data, "with_format") else self.data  # rows, not frames
        columns = getattr(data, "column_names", None)
        known = columns if isinstance(columns, list) and columns else None
        reader = RowReader(self.field, self.where, self.omitted, known)
        for n, row in enumerate(data, 1):
            if isinstance(row, Spans | Chat):
                yield row
            elif (document := reader.document(row, f"{self.where}, {n}")) is not None:
                yield document
        reader.finish()


# -- names --------------------------------------------------------------------------------------------------------


def from_name(name: str, field: str, streaming: bool = False) -> Corpus:
    """A dataset by name: on the hub if it answers, else a folder of FASTSNN_DATA."""
    tried = []
    if hub_answers():
        try:
            return from_hub(name, field, streaming)
        except ImportError:
            raise DataError(f"{name!r} needs the datasets package: pip install 'fastsnn-train[data]'") from None
        except Exception as error:
            tried.append(f"the hub answered {type(error).__name__}: {first_line(error)}")
    else:
        tried.append("the Hugging Face hub does not answer (no network, or HF_HUB_OFFLINE is set)")
    root = os.environ.get("FASTSNN_DATA")
    if not root:
        tried.append("FASTSNN_DATA is not set")
    else:
        for folder in sorted(Path(root).iterdir()) if Path(root).is_dir() else ():
            if folder.is_dir() and squeeze(folder.name) in {squeeze(part) for part in name.split("/")}:
                return texts_from_path(folder, field)
        tried.append(f"FASTSNN_DATA={root} has no folder for it")
    raise DataError(f"no dataset {name!r}: " + "; ".join(tried) + ". Give a file, a folder, or builtin:pydoc")


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or repr(error)).splitlines()[0]


def squeeze(name: str) -> str:
    """``wikitext-2-raw-v1`` and ``wikitext2`` are the same."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(-raw)?-v\d+$|-raw$", "", name.lower()))


@cache
def hub_answers() -> bool:
    """Does the hub answer within two seconds? (Its own client would retry for half a minute.)"""
    if any(os.environ.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
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
