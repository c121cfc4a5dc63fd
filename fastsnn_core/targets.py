"""Inputs and outputs checked before the work: does a file exist, can the target be written, would it destroy an input?

Work that takes minutes must not end in "that name is taken". Every verb and every function with a target asks here
first; each check raises a `FileError` that names the option, the path, what is wrong and what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fastsnn_core.errors import ArgumentError, FileError, MissingFileError
from fastsnn_core.moved import former

MARKS = {"config.json": {"bundle", "distributions"}, "meta.json": {"files", "seal"}}  # a bundle's files, keys in them
FILE_SUFFIXES = (
    ".pt", ".pth", ".bin", ".onnx", ".gguf", ".safetensors", ".ckpt", ".h5", ".pkl", ".npz", ".npy", ".json", ".toml",
    ".txt", ".md", ".py", ".csv", ".html", ".png", ".pdf", ".zip", ".gz", ".tar",
)  # fmt: skip
"""Endings that promise a file: a bundle, which is a folder, is not written under such a name."""


def bundle(path: str | Path, sources: Iterable[str | Path] = (), option: str = "") -> Path:
    """A path where a bundle may be written: nothing there, or a bundle to replace that is none of `sources`."""
    name, path = option_text(path, option), Path(path)
    if path.suffix.lower() in FILE_SUFFIXES:
        raise FileError(f"{name}: a bundle is a folder, and {path.suffix} promises a file; call it {path.stem}.snn")
    if path.exists() and not is_bundle(path):
        what = "exists and is no bundle" if path.is_dir() else "is a file, and a bundle is a folder"
        raise FileError(f"{name} {what}; it is left alone. Choose another name or remove it")
    refuse_overlap(path, sources, name)
    outside_bundles(path.parent, name)
    writable(path, name)
    return path


def existing_file(path: str | Path, option: str = "") -> Path:
    """A file that can be read."""
    name, path = option_text(path, option), Path(path)
    try:
        if path.is_dir():
            raise FileError(f"{name} is a folder; give a file")
        if not path.is_file():
            raise MissingFileError(f"{name}: there is no such file")
        with path.open("rb"):
            pass
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{name} cannot be read: {error.strerror}") from None
    return path


def read_text(path: str | Path, option: str = "") -> str:
    """The contents of a UTF-8 text file (a byte-order mark is dropped)."""
    path = existing_file(path, option)
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise FileError(f"{option_text(path, option)} is no UTF-8 text: {at}") from None


def is_bundle(path: Path) -> bool:
    """Does a bundle lie here, be it a damaged one? A Hugging Face directory, which has a config.json too, is none."""
    for name, keys in MARKS.items():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads((path / name).read_bytes())
            if isinstance(found, dict) and keys <= found.keys():
                return True
    return False


def option_text(path: str | Path, option: str) -> str:
    """``--to a.snn``; what is no path is an `ArgumentError`."""
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise ArgumentError(f"{option or 'path'}: {path!r} is no path")
    return f"{option} {path}".strip()


def refuse_overlap(path: Path, sources: Iterable[str | Path], name: str, inside: bool = True) -> None:
    """`path` is no source, and no source lies inside it (where what stands there is replaced: `inside`)."""
    for source in sources:
        there, here = Path(source).resolve(), path.resolve()
        if here == there:
            raise FileError(f"{name} is what is read from; it would be lost. Choose another name")
        if inside and there.is_relative_to(here) and here.is_dir():
            raise FileError(f"{name} holds {source}, which is read from; it would be lost. Choose another name")


def outside_bundles(path: Path, name: str) -> None:
    """Nothing is written into a bundle, whose list of files is sealed."""
    for place in (path, *path.resolve().parents):
        if is_bundle(place):
            raise FileError(f"{name} lies inside the bundle {place}, whose files are sealed. Choose another place")


def writable(path: Path, name: str) -> None:
    """The closest folder above `path` that exists takes new files; one is made and removed to know."""
    place = path.parent
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        why = "a file is in the way" if place.is_file() else error.strerror or "no files can be made there"
        raise FileError(f"{name} cannot be written: {place}: {why}") from None


def umask() -> int:
    """The process's umask, read without changing it where the system says it."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        rows = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(row for row in rows if row.startswith("Umask:")).split()[1], 8)
    found = os.umask(0o022)
    os.umask(found)
    return found


def plain_modes(path: Path) -> None:
    """Give a file, or everything in a folder, the permissions that the umask asks for; links are left alone."""
    mask = umask()
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not each.is_symlink():
            runs = each.is_dir() or each.stat().st_mode & 0o100
            each.chmod((0o777 if runs else 0o666) & ~mask)


__getattr__ = former(__name__)  # what moved into fastsnn_console
