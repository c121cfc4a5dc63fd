"""A small model, a small corpus and one thread for the tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsnn_core import build, create

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Two cores shared with others: threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make():
    """``make(neuron=…, **decoder parameters)``: the same small decoder every time."""

    def build_one(neuron="adaptive_threshold", attention=("gla", "sliding_window"), **more):
        torch.manual_seed(0)
        neuron = create("neuron", neuron) if isinstance(neuron, str) else neuron
        kinds = [create("attention", a, **({"window": 8} if a == "sliding_window" else {})) for a in attention]
        sizes = {"d_model": 16, "n_layers": len(kinds), "n_heads": 2, "vocab_size": 40} | more
        return build(create("model", "decoder", neuron=neuron, attention=tuple(kinds), **sizes))

    return build_one


@pytest.fixture
def packed():
    """600 pseudo-random tokens below 40 with some structure, ended documents among them, in sequences of 12."""
    from fastsnn_train import Packed

    rng = np.random.default_rng(3)
    tokens = (np.arange(600) * 7 % 19 + rng.integers(0, 3, 600)).astype(np.uint16)
    tokens[np.arange(5, 600, 23)] = 39
    return Packed(tokens, 12, end=39)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; the test is skipped where it is absent."""
    found = Path(os.environ.get("FASTSNN_DATA", ROOT.parent / "shared" / "data"))
    if not found.is_dir():
        pytest.skip(f"no real data at {found}; set FASTSNN_DATA")
    return found.resolve()
