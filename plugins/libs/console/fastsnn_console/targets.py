"""Inputs and outputs of verbs checked before the work: does a file exist, can the target be written, is it an input?

Work that takes minutes must not end in "that name is taken". Every verb and every function with a target asks here
first; each check raises a `FileError` that names the option, the path, what is wrong and what to do. The checks of
bundles and of files to be read are core's own (`fastsnn_core.targets`) and can be had here, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastsnn_core.errors import FileError as FileError
from fastsnn_core.errors import MissingFileError
from fastsnn_core.targets import bundle as bundle
from fastsnn_core.targets import existing_file as existing_file
from fastsnn_core.targets import is_bundle as is_bundle
from fastsnn_core.targets import option_text, outside_bundles, refuse_overlap, writable
from fastsnn_core.targets import plain_modes as plain_modes
from fastsnn_core.targets import read_text as read_text


def file(
    path: str | Path, sources: Iterable[str | Path] = (), option: str = "", suffixes: tuple[str, ...] = ()
) -> Path:
    """A path where a file may be written; one of these `suffixes`, if given."""
    name, path = option_text(path, option), Path(path)
    if path.is_dir() or str(path) in ("", "."):
        raise FileError(f"{name} is a folder; give the name of a file")
    if suffixes and path.suffix.lower() not in suffixes:
        raise FileError(f"{name}: the name must end in {' or '.join(suffixes)}")
    refuse_overlap(path, sources, name)
    outside_bundles(path.parent, name)
    writable(path, name)
    return path


def folder(path: str | Path, sources: Iterable[str | Path] = (), option: str = "") -> Path:
    """A folder that may be made or added to: no file, none of `sources`, not inside a bundle."""
    name, path = option_text(path, option), Path(path)
    if path.exists() and not path.is_dir():
        raise FileError(f"{name} is a file, and a folder is to be written")
    refuse_overlap(path, sources, name, inside=False)
    outside_bundles(path, name)
    writable(path / "x", name)
    return path


def anything(path: str | Path, sources: Iterable[str | Path] = (), option: str = "") -> Path:
    """A path where something may be written whose form is not known: none of `sources`, not inside a bundle."""
    name, path = option_text(path, option), Path(path)
    refuse_overlap(path, sources, name)
    outside_bundles(path.parent, name)
    writable(path, name)
    return path


def existing(path: str | Path, option: str = "") -> Path:
    """A file or folder that is there."""
    name, path = option_text(path, option), Path(path)
    try:
        path.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "there is no such file or folder" if missing else error.strerror
        raise (MissingFileError if missing else FileError)(f"{name}: {why}") from None
    return path
