"""The ``--fastsnn`` option; loaded by every pytest run of the environment, so it imports nothing."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Which plugins ``pytest --pyargs fastsnn_core.testing`` checks."""
    group = parser.getgroup("fastsnn")
    group.addoption(
        "--fastsnn", action="append", default=[], metavar="PLUGIN", help="check this FastSNN plugin (repeatable)"
    )
