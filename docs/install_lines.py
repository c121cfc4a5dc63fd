"""Folders of a checkout that a distribution needs: ``pip install $(python docs/install_lines.py fastsnn-serve)``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def projects() -> dict[str, tuple[str, list[str]]]:
    """Folder, from the root, and first-party requirements of every distribution of the checkout."""
    found = {}
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        names = [re.match(r"[A-Za-z0-9_-]+", row)[0] for row in project["dependencies"]]
        where = file.parent.relative_to(ROOT).as_posix()
        found[project["name"]] = f"./{where}" if where != "." else ".", [n for n in names if n.startswith("fastsnn")]
    return found


def needed(name: str) -> list[str]:
    """Folders of `name` and of all that it needs, core first."""
    known, found, left = projects(), dict[str, str](), [name]
    while left:
        one = left.pop()
        if one not in found:
            found[one] = known[one][0]
            left += known[one][1]
    return sorted(found.values())


if __name__ == "__main__":
    print(" ".join(needed(sys.argv[1])))
