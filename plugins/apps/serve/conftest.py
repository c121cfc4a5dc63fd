"""A tiny model, served, and the openai client in front of it."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch

from fastsnn_core import create, save
from fastsnn_serve import serve
from fastsnn_serve.testing import attached, decoder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """The models are tiny; threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    """The tiny decoder."""
    return decoder()


@pytest.fixture(scope="session")
def integer() -> Any:
    """A tiny decoder in integer arithmetic, its fused step compiled: bits that depend on nobody else."""
    pytest.importorskip("fastsnn_kernel_numba")
    from fastsnn_integer.quantization import quantise

    layers = (create("attention", "gla"), create("attention", "softmax"))
    made: Any = attached(quantise(decoder(attention=layers)))
    with torch.inference_mode():
        assert made.fast(made(torch.tensor([[1]]), return_state=True)[1]) is not None, made.fast_step
    return made


@pytest.fixture(scope="module")
def handle(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """It, served from a bundle."""
    path = save(model, tmp_path_factory.mktemp("serve") / "tiny.snn")
    with serve(path, port=0, block=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(handle: Any) -> openai.OpenAI:
    """The openai client of that server."""
    return openai.OpenAI(base_url=handle.url + "/v1", api_key="none", max_retries=0)
