"""Every route: what ``/`` says of them, and that no method, path, header or body breaks one."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from starlette.testclient import TestClient

from fastsnn_serve import app
from fastsnn_serve.http import routes
from fastsnn_serve.testing import decoder, send

USES = int(os.environ.get("FASTSNN_FUZZ", "300"))


@pytest.fixture(scope="module")
def quick() -> Any:
    """In-process, for many small requests."""
    with TestClient(app(decoder(d_model=16, n_layers=1), "tiny"), raise_server_exceptions=False) as client:
        yield client


def test_the_front_page_names_the_model_and_every_path(quick: Any, handle: Any) -> None:
    found = quick.get("/").json()
    assert (found["server"], found["model"]) == ("fastsnn-serve", "tiny")
    paths = {(method, path) for method, path, _ in found["paths"]}
    assert {("GET", "/"), ("POST", "/v1/chat/completions"), ("GET", "/metrics")} <= paths
    for method, path in paths:
        assert quick.request(method, path.replace("{id:path}", "tiny"), content=b"{}").status_code != 404, path
    page = quick.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert ">tiny</code>" in page.text
    assert "http://testserver/v1" in page.text
    assert quick.head("/").status_code == 200
    assert send(handle, "GET", "/")[1]["model"] == "tiny"


def test_a_name_is_no_markup() -> None:
    with TestClient(app(decoder(d_model=16, n_layers=1), "<b>x</b>")) as client:
        assert "<b>x" not in client.get("/", headers={"Accept": "text/html"}).text


def test_mistakes_in_tools_say_which(quick: Any) -> None:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    named = {"type": "function", "function": {"name": "g"}}
    for more, param, says in (
        ({"tools": [tool], "tool_choice": named}, "tool_choice.function.name", "one of the tools (f)"),
        ({"tool_choice": named}, "tool_choice.function.name", "there are none"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": [tool], "tool_choice": "maybe"}, "tool_choice", '"required"'),
        ({"tools": [tool, tool]}, "tools", "different names"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", '"function"'),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters, digits"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "expected an object"),
        ({"tools": {}}, "tools", "a list"),
        ({"functions": [tool["function"]]}, "functions", "use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "use tool_choice"),
    ):
        answer = quick.post("/v1/chat/completions", json=said | more)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (more, error)
        assert says in error["message"], (more, error)
    for fine in ({"tools": [tool]}, {"tools": [tool], "tool_choice": "auto"}, {"tools": [], "tool_choice": "none"}):
        assert quick.post("/v1/chat/completions", json=said | fine).status_code == 200


METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
PATHS = (
    "/", "/v1", "/v1/models", "/v1/models/tiny", "/v1/models/%00", "/v1/models/a%2Fb", "/v1/completions",
    "/v1/completions/", "/v1//completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/tokenizer_info",
    "/healthz", "/health", "/readyz", "/metrics", "/..", "/%ff", "/v1/embeddings", "/favicon.ico", "/v1/responses",
    "/apply-template", "/slots", "/sessions", "/sessions/save", "/sessions/restore", "/openapi.json", "/v1/nothing",
)  # fmt: skip
TYPES = (None, "application/json", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**63, 1e308, 0.5, "", "a", "\ud800", "\x00", "9", [], [0], [[]], [None], ["a", 1],
    [257], [-1], {}, {"a": 1}, {"type": "text"}, {"include_usage": 1}, [{"role": "user", "content": "a"}],
    [{"role": "tool", "content": None}], [{"role": "assistant"}], [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], [{"type": "function"}],
)  # fmt: skip
FIELDS = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
    "stop", "seed", "n", "echo", "logprobs", "top_logprobs", "stream", "stream_options", "user", "metadata",
    "tools", "tool_choice", "functions", "function_call", "response_format", "logit_bias", "best_of", "suffix",
    "min_p", "documents", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "tokens",
    "add_special_tokens", "input", "instructions", "max_output_tokens", "text", "encoding_format", "name",
    "presence_penalty", "ignore_eos", "x",
)  # fmt: skip


def request(rng: random.Random) -> tuple[str, str, Any, dict[str, str]]:
    """A request that some client might send by mistake."""
    path = rng.choice(PATHS)
    method = rng.choice(("POST", "POST", "GET", rng.choice(METHODS)))
    kind = rng.choice(TYPES) if rng.random() < 0.3 else "application/json"
    headers = {} if kind is None else {"Content-Type": kind}
    if rng.random() < 0.1:
        headers |= {"Accept": rng.choice(("text/html", "*/*", "\x7f", "image/png"))}
    base: dict[str, Any] = {"max_tokens": 2} if path.startswith("/v1") else {}
    base |= {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {}
    base |= {"prompt": "a"} if path in ("/v1/completions", "/tokenize") else {}
    body: Any = base | {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
    for field in ("max_tokens", "max_completion_tokens", "n"):  # the longest answers are no mistake, but take long
        if isinstance(body.get(field), int | float) and body[field] > 3:
            body[field] = 3
    if path.startswith("/v1") and body.get("max_tokens") is None:
        body["max_tokens"] = 2
    raw = json.dumps(body).encode()
    if rng.random() < 0.15:
        cut = rng.randrange(len(raw))
        raw = rng.choice(
            (raw[:cut], raw[:cut] + b"\xff" + raw[cut:], raw + b"}", b"", b"null", raw.decode().encode("utf-16"))
        )
    return method, path, raw, headers


def test_no_request_breaks_a_route(quick: Any) -> None:
    rng, faults, codes = random.Random(0), [], dict[int, int]()
    for _ in range(USES):
        method, path, raw, headers = request(rng)
        answer = quick.request(method, path, content=raw, headers=headers, follow_redirects=False)
        codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
        bad = answer.status_code >= 500 or "Traceback" in answer.text
        if 400 <= answer.status_code < 500 and method != "HEAD":
            bad = bad or set(answer.json()["error"]) != {"message", "type", "param", "code"}
            bad = bad or not answer.json()["error"]["message"]
        if bad:
            faults.append((method, path, raw, headers, answer.status_code, answer.text[:300]))
    assert not faults, f"{len(faults)} of {USES}:\n" + "\n".join(map(str, faults[:20]))
    assert {200, 400, 404, 405} <= codes.keys(), codes
    assert quick.get("/healthz").status_code == 200


@pytest.mark.parametrize("fault", ["a bug", "no form"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that ends in a KeyError; a refusal that has not OpenAI's form."""

    async def faulty(request: Any) -> Any:
        if fault == "a bug":
            raise KeyError("x")
        return routes.PlainTextResponse("{}", 404)

    monkeypatch.setattr(routes.Server, "tokenizer_info", lambda self, request: faulty(request))
    client = TestClient(app(decoder(d_model=16, n_layers=1), "tiny"), raise_server_exceptions=False)
    with client, pytest.raises((AssertionError, KeyError)):
        test_no_request_breaks_a_route(client)
