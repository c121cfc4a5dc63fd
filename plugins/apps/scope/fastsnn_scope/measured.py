"""One scope, alone: a failing one costs its own panel, and so does a failing part of the report itself."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from fastsnn_core import Scope
from fastsnn_core.subject import Data, Subject

log = logging.getLogger("fastsnn")


def isolated(what: str, call: Callable[[], Any], faults: list[str]) -> Any:
    """What `call` gives; where it fails None, a warning, and a line in `faults`, which the page shows."""
    try:
        return call()
    except Exception as error:
        log.warning("%s failed: %s: %s", what, type(error).__name__, error)
        faults.append(f"{what} failed: {type(error).__name__}: {error}")
        return None


def measured(one: Scope, subject: Subject) -> Data:
    """``{"title", "seconds", "data"}`` of a scope, or ``"error"``: one failing scope costs its own panel, no more."""
    start = time.perf_counter()
    try:
        data = one.measure(subject)
        if not isinstance(data, dict):
            raise TypeError(f"measure returned {type(data).__name__}, a dict of plain data is expected")
        found = {"data": json.loads(json.dumps(data, allow_nan=False))}
        if wrong := malformed(found["data"]):
            raise TypeError(f"measure returned {wrong}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may call sys.exit: SystemExit must not end the report
        log.warning("scope %s failed: %s: %s", one.name, type(error).__name__, error)
        found = {"error": f"measure: {type(error).__name__}: {error}"}
    return {
        "title": one.title or one.name,
        "reading": reading(one),
        "seconds": round(time.perf_counter() - start, 3),
        **found,
    }


def malformed(data: Data) -> str:
    """What is wrong with the keys that the page itself reads (see README.md), or the empty string."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    def is_table(t: Any) -> bool:
        known = isinstance(t, dict) and isinstance(t.get("title"), str) and texts(t.get("columns"))
        rows = t.get("rows") if known else None
        return isinstance(rows, list) and all(texts(r) and len(r) == len(t["columns"]) for r in rows)

    def listed(value: Any, good: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and all(map(good, value))

    if not isinstance(data.get("reason", ""), str):
        return "a 'reason' that is no text"
    for key in ("notes", "assumptions"):
        if not texts(data.get(key, [])):
            return f"{key!r} that is no list of texts"
    if not listed(data.get("headline", []), lambda pair: texts(pair) and len(pair) == 2):
        return "a 'headline' that is no list of [label, text]"
    if not listed(data.get("tables", []), is_table):
        return "'tables' that are no list of {title, columns, rows} with texts in every cell"
    return ""


def reading(one: Scope) -> str:
    """How to read a scope's picture: its `reading`, or its docstring's first paragraph."""
    text = getattr(one, "reading", "") or (type(one).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())
