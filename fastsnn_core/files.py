"""Writing without losing: beside, then renamed into place."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from fastsnn_core.targets import plain_modes


@contextlib.contextmanager
def reading_tensors() -> Iterator[None]:
    """Around safetensors' readers: torch makes a ValueError of a Ctrl-C inside its own work; here it is one again."""
    try:
        yield
    except ValueError as error:
        raise (KeyboardInterrupt() if "could not determine the shape" in str(error) else error) from None


@contextlib.contextmanager
def beside(path: str | Path) -> Iterator[Path]:
    """A scratch path next to `path`; when the block ends well, what stands there becomes `path`, whole.

    The block makes a file or a folder. On an error the scratch is removed and `path` is as it was. A folder that is
    replaced is moved aside first and removed last, so that at no moment a half-written one stands at `path`. Everything
    gets the permissions that the umask asks for, whatever wrote it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
    scratch, old = (path.with_name(f".{path.name}.{tag}.{end}") for end in ("part", "old"))
    try:
        yield scratch
        plain_modes(scratch)
        if path.is_dir() and scratch.is_dir():
            path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old)
        else:
            scratch.replace(path)
    finally:  # whatever ended it, and wherever: an error, or Ctrl-C between two of these lines
        if old.is_dir() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with beside(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
