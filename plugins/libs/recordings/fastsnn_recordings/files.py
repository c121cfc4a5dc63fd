"""Files of events: which format, read whole or in pieces; cut files and clocks that run backwards are errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastsnn_core.errors import MissingError
from fastsnn_recordings.decoders import DECODERS
from fastsnn_recordings.events import EventError, Events
from fastsnn_recordings.libraries import LIBRARIES, packets

PIECE = 1 << 20  # words that are decoded together
ENDINGS = (".bin", ".raw", ".npz", ".npy", ".h5", ".hdf5", *LIBRARIES)
NAMES = {"t": ("t", "ts", "time", "timestamp", "timestamps"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity")}


def read_events(path: str | Path, size: tuple[int, int] = (0, 0), *, kind: str = "", sort: bool = False) -> Events:
    """All events of a recording. `size` (H, W) is checked where it is given; else it is that of the events.

    `kind` is "nmnist", "evt2" or "evt3" where the file does not tell; `sort` puts them in the order of time.
    Errors are those of `pieces`.
    """
    parts = list(pieces(path, size, kind=kind, check=not sort))
    found = Events.joined(parts, size or (0, 0))
    found = found.sorted() if sort else found
    if found.size == (0, 0) and len(found):
        found = Events(found.t, found.x, found.y, found.p, (int(found.y.max()) + 1, int(found.x.max()) + 1))
    return found.checked(str(path))


def pieces(
    path: str | Path, size: tuple[int, int] = (0, 0), *, kind: str = "", words: int = PIECE, check: bool = True
) -> Iterator[Events]:
    """The events of a recording, so many words of the file at a time: memory does not grow with its length.

    Errors (`EventError`): no such file or format, a file cut in the middle, events beyond `size`, times that run back;
    the event's place is named.
    """
    path = Path(path)
    if not path.is_file():
        raise EventError(f"{path} is no file")
    if path.suffix in (".npz", ".npy", ".h5", ".hdf5"):
        source = arrays(path, size, words)
    elif path.suffix in LIBRARIES:
        source = packets(path, size)
    else:
        source = decoded(path, size, kind, words)
    seen, last = 0, None
    for part in source:
        if check:
            part.checked(str(path), seen, last)
        seen, last = seen + len(part), int(part.t[-1]) if len(part) else last
        yield part


def decoded(path: Path, size: tuple[int, int], kind: str, words: int) -> Iterator[Events]:
    """Of a camera's own format."""
    with path.open("rb") as file:
        kind = kind or recording_format(file, path)
        if kind not in DECODERS:
            raise EventError(f"no format {kind!r}; there are {', '.join(DECODERS)} (and .npz, .npy, .h5, .es, .aedat4)")
        decoder, done = DECODERS[kind](), 0
        while raw := file.read(words * decoder.word):
            left = len(raw) % decoder.word
            if left:
                whole = done + len(raw) // decoder.word
                raise EventError(
                    f"{path} is cut off: {decoder.unit} {whole} has {left} of {decoder.word} bytes; what stands "
                    "before it is whole"
                )
            done += len(raw) // decoder.word
            t, x, y, p = decoder.decode(np.frombuffer(raw, np.uint8))
            yield Events(t, x, y, p, size)


def recording_format(file: BinaryIO, path: Path) -> str:
    """By its header (``% evt 3.0``) or its ending; leaves `file` behind the header."""
    text = b""
    while file.peek(1)[:1] == b"%":  # type: ignore[attr-defined]
        line = file.readline(4096)
        text += line
        if line.startswith(b"% end"):
            break
    head = text.decode("latin-1").lower()
    for kind, marks in {"evt3": ("evt 3", "format evt3"), "evt2": ("evt 2.0", "format evt2;", "format evt2\n")}.items():
        if any(mark in head for mark in marks):
            return kind
    if head:
        lines = " / ".join(line for line in head.splitlines() if "evt" in line or "format" in line)
        raise EventError(f"{path} is of a format that is not read ({lines or 'its header names none'}); EVT2, EVT3 are")
    if path.suffix == ".bin":
        return "nmnist"
    raise EventError(f"{path} has no header that names its format; say kind = 'nmnist', 'evt2' or 'evt3'")


def arrays(path: Path, size: tuple[int, int], words: int) -> Iterator[Events]:
    """Columns t, x, y, p, or one structured array."""
    if path.suffix in (".h5", ".hdf5"):
        try:
            import h5py
        except ImportError:
            raise MissingError("HDF5 needs h5py: pip install h5py") from None
        try:
            with h5py.File(path, "r") as file:
                yield from in_pieces(columns(file.get("events", file), path), size, words)
        except OSError as error:
            raise EventError(f"{path} is no whole HDF5 file: {error}") from None
        return
    try:
        table: Any = np.load(path, allow_pickle=False)
        named = {name: table[name] for name in table.files} if hasattr(table, "files") else table
    except (ValueError, OSError, EOFError) as error:
        raise EventError(f"{path} is no whole file of plain arrays: {error}") from None
    yield from in_pieces(columns(named, path), size, words)


def columns(table: Any, path: Path) -> list[Any]:
    """t, x, y, p by the names they go by."""
    known = list(getattr(getattr(table, "dtype", None), "names", None) or getattr(table, "keys", list)())
    if known == ["events"] or (len(known) == 1 and "txyp" not in "".join(known)):
        return columns(table[known[0]], path)
    found = []
    for what, names in NAMES.items():
        hit = next((name for name in names if name in known), None)
        if hit is None:
            raise EventError(f"{path} has no column {what!r}; it has {', '.join(map(str, known)) or 'none'}")
        found.append(table[hit])
    return found


def in_pieces(found: list[Any], size: tuple[int, int], words: int) -> Iterator[Events]:
    """So many rows at a time."""
    for begin in range(0, len(found[0]), words):
        t, x, y, p = (np.asarray(column[begin : begin + words]).astype(np.int64) for column in found)
        yield Events(t, x, y, p, size)
