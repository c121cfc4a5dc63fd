"""A tiny model, served, and the openai client in front of it."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch

from fastsnn_core import save
from fastsnn_serve import serve
from fastsnn_serve.testing import decoder


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
