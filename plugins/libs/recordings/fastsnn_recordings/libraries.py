"""Formats that a library of their authors reads: Event Stream (.es, `event_stream`) and AEDAT 4 (.aedat4, `aedat`).

Packets come one after the other, so memory does not grow with the recording. Rows are counted from the top, as in every
other format here; Event Stream counts them from the bottom. A file of Event Stream that is cut off is an error, which
its library passes over: an event takes 5 bytes, and one more for every 127 µs since the last.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastsnn_core.errors import MissingError
from fastsnn_recordings.events import EventError, Events

LIBRARIES = {".es": "event_stream", ".aedat4": "aedat"}
HEADER, EVENT, WAIT = 20, 5, 127  # bytes, bytes, microseconds


def decoder_of(path: Path) -> Any:
    """The library's decoder of this file."""
    name = LIBRARIES[path.suffix]
    try:
        library: Any = importlib.import_module(name)
    except ImportError:
        raise MissingError(f"{path.suffix} needs {name}: pip install {name}") from None
    try:
        return library.Decoder(str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise EventError(f"{path} is not read by {name}: {error}") from None


def packets(path: Path, size: tuple[int, int]) -> Iterator[Events]:
    """The events of a recording, a packet at a time."""
    decoder = decoder_of(path)
    found = of_event_stream(decoder, path, size) if path.suffix == ".es" else of_aedat(decoder, path, size)
    try:
        yield from found
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, EventError):
            raise
        raise EventError(f"{path} is broken: {error}; what stands before it is whole") from None


def of_event_stream(decoder: Any, path: Path, size: tuple[int, int]) -> Iterator[Events]:
    """Of a camera's events (dvs); rows are turned over."""
    if decoder.type != "dvs":
        raise EventError(f"{path} holds events of type {decoder.type!r}; dvs (t, x, y, polarity) is read")
    height, seen, room, last = int(decoder.height), 0, HEADER, 0
    for rows in decoder:
        t = rows["t"].astype(np.int64)
        room += EVENT * len(rows) + int((np.diff(t, prepend=last) // WAIT).sum())
        seen, last = seen + len(rows), int(t[-1]) if len(t) else last
        y = height - 1 - rows["y"].astype(np.int64)
        yield Events(t, rows["x"].astype(np.int64), y, rows["on"].astype(np.int64), size or (0, 0))
    if (left := path.stat().st_size - room) > 0:
        raise EventError(
            f"{path} is cut off: {left} bytes of event {seen} stand at its end; what stands before it is whole"
        )


def of_aedat(decoder: Any, path: Path, size: tuple[int, int]) -> Iterator[Events]:
    """Of the first stream of events in the file."""
    streams = decoder.id_to_stream()
    chosen = next((key for key, stream in sorted(streams.items()) if stream["type"] == "events"), None)
    if chosen is None:
        kinds = ", ".join(sorted({stream["type"] for stream in streams.values()})) or "none"
        raise EventError(f"{path} holds no stream of events (but {kinds})")
    for packet in decoder:
        if packet["stream_id"] == chosen and "events" in packet:
            rows = packet["events"]
            t, x, y, p = (rows[name].astype(np.int64) for name in ("t", "x", "y", "on"))
            yield Events(t, x, y, p, size)
