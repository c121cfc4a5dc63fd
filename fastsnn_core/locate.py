"""On which line of a TOML text a key stands: the parser is its own locator, used on the error path only."""

from __future__ import annotations

from typing import Any

import tomli

Path = tuple[str | int, ...]


def contains(data: Any, path: Path) -> bool:
    """Does the parsed `data` hold something at `path`?"""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def locate(text: str, path: Path) -> int | None:
    """Line (from 1) on which `path` first exists: the shortest prefix of `text` that parses and contains it."""
    lines, last_good = text.splitlines(keepends=True), 0
    for n in range(1, len(lines) + 1):
        try:
            data = tomli.loads("".join(lines[:n]))
        except tomli.TOMLDecodeError:
            continue  # the prefix cuts a multi-line value
        if contains(data, path):
            return first_content_line(lines, last_good, n)
        last_good = n
    return None


def first_content_line(lines: list[str], start: int, end: int) -> int:
    """The first line after `start` that carries anything: a value may be preceded by blank lines and comments."""
    for n in range(start, end):
        if lines[n].strip() and not lines[n].lstrip().startswith("#"):
            return n + 1
    return end
