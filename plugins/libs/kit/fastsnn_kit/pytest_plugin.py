"""The ``--fastsnn`` option and the fixture `poisoned`; loaded by every pytest run, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: Any) -> None:
    """Which plugins ``pytest --pyargs fastsnn_core.testing`` checks."""
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
