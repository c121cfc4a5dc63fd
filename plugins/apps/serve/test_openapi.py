"""The OpenAPI description: complete, true to the routes, and held to by schemathesis where that is installed."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from starlette.testclient import TestClient

from fastsnn_serve import app
from fastsnn_serve.testing import decoder

CASES = int(os.environ.get("FASTSNN_SCHEMA_CASES", "120"))  # 10 000 in nox -s slow


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """In-process, with sessions, answers cut short."""
    folder = tmp_path_factory.mktemp("sessions")
    small = decoder(d_model=16, n_layers=1)
    made = app(small, "tiny", sessions=folder, max_model_len=256, max_seconds=60)
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


def whole(value: Any) -> Any:
    """Most of 2.0 as 2: JSON Schema takes it for an integer, few clients send it, and this server refuses it."""
    if isinstance(value, dict):
        return {k: whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() and value % 4 else value


def test_schemathesis(quick: Any) -> None:
    """Requests that fit the description and requests that do not: never a 5xx, a status or a form not described."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    import requests
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_dict(quick.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    seen: Counter[int] = Counter()

    def call(case: Any) -> None:
        if isinstance(case.body, dict):  # short answers: thousands of them are asked for
            few = {"max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"}
            case.body = whole(case.body)
            case.body |= {k: min(v, 2) for k, v in case.body.items() if k in few and type(v) is int}
        request = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
        answer = quick.request(request.method, request.url, content=request.body, headers=dict(request.headers))
        seen[answer.status_code] += 1
        told, what = (
            case.operation.definition.raw["responses"],
            (request.method, request.url, request.body, answer.text),
        )
        assert answer.status_code < 500, what
        assert str(answer.status_code) in told, (answer.status_code, *what)
        kind = answer.headers["content-type"].split(";")[0]
        assert kind in told[str(answer.status_code)]["content"], (kind, *what)
        if answer.status_code != 200:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, what

    modes = [(one, mode) for one in operations for mode in GenerationMode if mode.is_positive or one.method == "post"]
    posts = sum(one.method == "post" for one, _ in modes)
    for operation, mode in modes:  # most of them with a body: the others have little to vary
        most = max(1, CASES // posts) if operation.method == "post" else max(1, CASES // 100)
        how = settings(
            max_examples=most, deadline=None, suppress_health_check=list(HealthCheck), database=None,
            phases=[Phase.generate],
        )  # fmt: skip
        strategy = operation.as_strategy(generation_mode=mode)
        how(given(case=strategy)(call))()
    print(f"{seen.total()} requests: {dict(seen)}")
    assert {200, 400} <= seen.keys()
    assert seen.total() >= 0.9 * CASES
