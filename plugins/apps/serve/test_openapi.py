"""The OpenAPI description: complete, true to the routes, and held to by schemathesis where that is installed."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from starlette.testclient import TestClient

from fastsnn_serve import app
from fastsnn_serve.testing import decoder

CASES = int(os.environ.get("FASTSNN_SCHEMA_CASES", "200"))  # 10 000 in nox -s slow


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


def test_schemathesis(quick: Any) -> None:
    """Bodies that fit the description and bodies that do not: never a 5xx, never a status that is not described."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    document = quick.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    seen: dict[int, int] = {}

    def call(case: Any, operation: Any) -> None:
        body = case.body if isinstance(case.body, dict | list | str | int | float | bool | None) else None
        if isinstance(body, dict):
            for field in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"):
                if isinstance(body.get(field), int) and body[field] > 2:
                    body[field] = 2
        raw = json.dumps(body).encode() if operation.method == "post" else None
        path = operation.path.replace("{id}", str(random.Random(repr(case.path_parameters)).randrange(99)))
        answer = quick.request(
            operation.method.upper(), path, content=raw, headers={"Content-Type": "application/json"}
        )
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        told = operation.definition.raw["responses"]
        assert answer.status_code < 500 or answer.status_code in (503, 507), (path, body, answer.text)
        assert str(answer.status_code) in told, (path, body, answer.status_code)
        kind = answer.headers["content-type"].split(";")[0]
        assert kind in told[str(answer.status_code)]["content"], (path, kind)

    for operation in operations:
        each = max(3, CASES // len(operations))
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if operation.method == "get" and mode is GenerationMode.NEGATIVE:
                continue

            @settings(
                max_examples=each // 2 + 1,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=[Phase.generate],
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any, operation: Any = operation) -> None:
                call(case, operation)

            check()
    assert {200, 400} <= seen.keys(), seen
