"""A call from Python that imports PyTorch says so after a second, as a verb does on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastsnn_core.cli import notice_of_start


@contextlib.contextmanager
def starting(name: str) -> Iterator[None]:
    """``@starting("build")`` over a function: the first such call of a process says on stderr that it is importing.

    Nothing is said where PyTorch is imported already, under ``FASTSNN_QUIET=1``, or below a verb.
    """
    notice = notice_of_start([name], "FastSNN")
    try:
        yield
    finally:
        notice.cancel()
