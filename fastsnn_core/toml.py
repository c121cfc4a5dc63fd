"""A small TOML writer: the inverse of tomli for the tables a spec is made of.

Top-level tables get a header; everything below is written inline, long lists over several lines. This is why tomli-w
is not used: it writes ``neuron = { kind = "lif" }`` as a table ``[model.neuron]`` of its own, and a list of attentions
as ``[[model.attention]]`` blocks, so that a filled spec would not look like the one that was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastsnn_core.errors import ArgumentError

BARE = re.compile(r"[A-Za-z0-9_-]+")
ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}


def dumps(table: Mapping[str, Any]) -> str:
    """TOML text; ``tomli.loads(dumps(t)) == t`` for tables of str, int, float, bool, lists and tables."""
    plain = [f"{key(k)} = {toml_value(v)}" for k, v in table.items() if not isinstance(v, Mapping)]
    blocks = ["\n".join(plain)] if plain else []
    for name, sub in table.items():
        if isinstance(sub, Mapping):
            blocks.append("\n".join([f"[{key(name)}]", *(f"{key(k)} = {toml_value(v, 96)}" for k, v in sub.items())]))
    return "\n\n".join(blocks) + "\n"


def key(name: str) -> str:
    """A key, quoted where it must be."""
    return name if BARE.fullmatch(name) else string(name)


def string(text: str) -> str:
    """A basic string."""
    safe = (ESCAPES.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 32 or c == "\x7f" else c) for c in text)
    return f'"{"".join(safe)}"'


def toml_value(v: Any, wrap: int = 10**9) -> str:
    """One value, inline; a list longer than `wrap` characters takes a line per item."""
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, int | float):  # also IntEnum and np.float64, whose own repr is no number
        return (int if isinstance(v, int) else float).__repr__(v)
    if isinstance(v, str):
        return string(v)
    if isinstance(v, Mapping):
        return "{ " + ", ".join(f"{key(k)} = {toml_value(x)}" for k, x in v.items()) + " }" if v else "{}"
    if isinstance(v, list | tuple):
        items = [toml_value(x) for x in v]
        line = "[" + ", ".join(items) + "]"
        return line if len(line) <= wrap else "[\n" + "".join(f"    {i},\n" for i in items) + "]"
    raise ArgumentError(f"TOML has no {type(v).__name__}: {v!r}")
