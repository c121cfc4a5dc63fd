"""LangChain's and LiteLLM's ordinary calls, and lm-eval's local-completions (``nox -s clients`` installs them)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastsnn_serve.testing import expected, lasting, text_of

PROMPT = b"User: Hello\nAssistant:"


def test_langchain(handle: Any, model: Any) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: nox -s clients")
    seed = lasting(model, list(PROMPT), 12)
    want = text_of(expected(model, list(PROMPT), 12, seed=seed))
    chat = langchain.ChatOpenAI(
        base_url=handle.url + "/v1", api_key="none", model="tiny", max_completion_tokens=12, seed=seed, temperature=1
    )
    assert chat.invoke("Hello").content == want
    assert "".join(piece.content for piece in chat.stream("Hello")) == want
    assert [row.content for row in chat.batch(["Hello", "Hello"])] == [want, want]
    schema = {
        "title": "Kind", "type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"],
        "additionalProperties": False,
    }  # fmt: skip
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    longer = chat.model_copy(update={"max_tokens": 200})
    assert longer.with_structured_output(schema, method="json_schema").invoke("Hello")["kind"] in ("a", "b")
    bound = longer.bind_tools([schema], tool_choice="required")
    assert bound.invoke("Hello").tool_calls[0]["args"]["kind"] in ("a", "b")
    vectors = langchain.OpenAIEmbeddings(
        base_url=handle.url + "/v1", api_key="none", model="tiny", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(["a", "b"])) == 2


def test_litellm(handle: Any, model: Any) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed: nox -s clients")
    seed = lasting(model, list(PROMPT), 12)
    want = text_of(expected(model, list(PROMPT), 12, seed=seed))
    said: Any = {
        "model": "openai/tiny", "api_base": handle.url + "/v1", "api_key": "none", "max_tokens": 12, "seed": seed,
        "messages": [{"role": "user", "content": "Hello"}],
    }  # fmt: skip
    assert litellm.completion(**said).choices[0].message.content == want
    pieces = list(litellm.completion(**said, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == want
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    made = litellm.completion(**said | {"max_tokens": 100}, tools=[tool], tool_choice="required")
    assert json.loads(made.choices[0].message.tool_calls[0].function.arguments) is not None
