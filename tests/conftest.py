"""Real data through FASTSNN_DATA, and uninitialised memory full of NaN."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; the test is skipped where it is absent."""
    found = Path(os.environ.get("FASTSNN_DATA", ROOT.parent / "shared" / "data"))
    if not found.is_dir():
        pytest.skip(f"no real data at {found}; set FASTSNN_DATA")
    return found.resolve()


@pytest.fixture
def poisoned():
    """torch.empty gives NaN inside the test: what is not written shows."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
