"""The errors a user can mend. Everything else that FastSNN raises is a bug and is shown with its traceback.

One base class, `FastSNNError`, so that the command line, the server and a user's ``except`` can tell the two apart. It
is a `ValueError`, since most are; an error that must be something else besides derives from both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class FastSNNError(ValueError):
    """A mistake in what the user gave: the message says what, where, and what is possible."""


class UserError(FastSNNError):
    """A mistake on the command line, or in the choice of files: printed as one line, exit status 2."""


class ArgumentError(FastSNNError, TypeError):
    """An argument of a wrong type, or one that the function does not take."""


class MissingError(FastSNNError, ImportError):
    """A package that this feature needs is not installed: the message says which, and how to get it."""


class FileError(FastSNNError, OSError):
    """A file or folder that is missing, is something else, or must not be overwritten."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class NetworkError(FastSNNError, OSError):
    """An address that cannot be listened at or reached."""


class ProcessError(FastSNNError, RuntimeError):
    """Something around us ended or cannot start: a worker that was killed, a server that did not come up."""


def did_you_mean(name: str, known: Iterable[str], label: str = "possible") -> str:
    """``did you mean 'steps'? possible: k, steps``: the help of an error about a name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"{label}: {', '.join(names) or 'none'}"


def shape_text(t: Any) -> str:
    """``[8, 4] float32``: a tensor in an error; of anything else its type."""
    if not (hasattr(t, "shape") and hasattr(t, "dtype")):
        return type(t).__name__
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"


def check_options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ArgumentError` for the first of `given` that is not among `known`: for functions with ``**options``."""
    names = list(known)
    for name in given:
        if name not in names:
            raise ArgumentError(f"{function}() has no option {name!r}; {did_you_mean(name, names, 'options')}")
