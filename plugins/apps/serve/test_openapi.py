"""The OpenAPI description: complete, and true to the routes."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from fastsnn_serve import app
from fastsnn_serve.testing import decoder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """In-process, with sessions, answers cut short."""
    folder = tmp_path_factory.mktemp("sessions")
    small = decoder(d_model=16, n_layers=1)
    made = app(small, "tiny", sessions=folder, max_model_len=64, max_seconds=20)
    with TestClient(made, raise_server_exceptions=False) as http:
        yield http


def test_every_path_and_only_those(quick: Any) -> None:
    document = quick.get("/openapi.json").json()
    here = {(method, path.replace("{id:path}", "{id}")) for method, path, _ in quick.get("/").json()["paths"]}
    told = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert told == here
    ids = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(ids) == len(set(ids))
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
    least: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "a", "max_tokens": 1}, "/v1/chat/completions": chat | {"max_tokens": 1},
        "/v1/responses": {"input": "a", "max_output_tokens": 1}, "/v1/embeddings": {"input": "a"},
        "/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]}, "/apply-template": chat,
        "/sessions/save": {"name": "s", "prompt": "a"}, "/sessions/restore": {"name": "s"},
    }  # fmt: skip
    assert set(least) == {path for method, path in here if method == "POST"}
    for path, body in least.items():  # every field that is described is known to the server, and no other
        known = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        answer = quick.post(path, json=dict.fromkeys(known) | body)
        assert answer.status_code == 200, (path, answer.text)
        assert "zzz" in quick.post(path, json=body | {"zzz": 1}).json()["error"]["message"]
