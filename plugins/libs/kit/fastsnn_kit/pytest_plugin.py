"""The ``--fastsnn`` option and the fixture `poisoned`; loaded by every pytest run, so it imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: Any) -> None:
    """Which plugins ``pytest --pyargs fastsnn_core.testing`` checks; and tests wait for kernels that compile."""
    os.environ.setdefault("FASTSNN_COMPILE", "wait")  # what a test runs does not depend on what the cache holds
    group = parser.getgroup("fastsnn")
    group.addoption(
        "--fastsnn", action="append", default=[], metavar="PLUGIN", help="check this FastSNN plugin (repeatable)"
    )


@pytest.fixture
def poisoned() -> Iterator[None]:
    """`torch.empty` gives NaN inside the test: memory that is read before it is written shows."""
    from fastsnn_kit.kernels import poisoned as block

    with block():
        yield
