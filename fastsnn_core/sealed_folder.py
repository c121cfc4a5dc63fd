"""A folder whose files are listed, with size and sha256, in a JSON file that is sealed itself: bundles, checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from fastsnn_core.errors import FastSNNError

DROPPINGS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave; nothing reads them


class BundleError(FastSNNError):
    """A bundle that cannot be read or written: names the file, what is wrong and what to do."""


def dump(data: Any) -> str:
    """Canonical JSON: equal data gives equal bytes."""
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def digest(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """meta with ``seal``, the sha256 of the rest of it: meta.json vouches for the files, the seal for meta.json."""
    body = {k: v for k, v in meta.items() if k != "seal"}
    return body | {"seal": hashlib.sha256(dump(body).encode()).hexdigest()}


def read_json(path: Path) -> Any:
    """A JSON file of a bundle, or an error that names it."""
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}") from None


def check_listed(path: Path, seal: Path) -> None:
    """Check the files of a sealed folder against the list in its `seal`: all there, unaltered, and no others.

    ``seal`` is the JSON file (`META` of a bundle) that carries ``{"files": {name: {"bytes", "sha256"}}, "seal": …}``.
    """
    meta = read_json(seal)
    if not isinstance(meta, dict) or dump(sealed(meta)) != seal.read_text(encoding="utf-8"):
        raise BundleError(f"{seal} is altered: its seal does not match its contents")
    files = meta.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(row, dict) and {"bytes", "sha256"} <= row.keys() for row in files.values()
    ):
        raise BundleError(f"{seal} is damaged: it has no list of files")
    for name, wanted in files.items():
        file, parts = path / name, PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
            raise BundleError(f"{seal} names a file outside the folder: {name}")
        if not file.is_file():
            raise BundleError(f"{file} is missing")
        size = file.stat().st_size
        if size != wanted["bytes"]:
            what = "truncated" if size < wanted["bytes"] else "altered"
            raise BundleError(f"{file} is {what}: {size} bytes, {wanted['bytes']} expected")
        if digest(file)["sha256"] != wanted["sha256"]:
            raise BundleError(f"{file} is altered: its sha256 is not the one in {seal.name}")
    found = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()}
    strangers = sorted(n for n, p in found.items() if n not in files and p != seal and p.name not in DROPPINGS)
    if strangers:
        raise BundleError(
            f"{path / strangers[0]} is no part of it: {seal.name} does not list it"
            + (f" (nor {len(strangers) - 1} more)" if len(strangers) > 1 else "")
            + ". Remove it: only what is listed can be verified"
        )
