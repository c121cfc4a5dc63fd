"""What clients do beyond a plain call: openai's helpers, LangChain, LiteLLM and lm-eval (``nox -s clients``)."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from fastsnn_serve.testing import bytes_text, expected, lasting

PROMPT = b"User: Hello\nAssistant:"


class Kind(pydantic.BaseModel):
    """What an answer is parsed into."""

    kind: Literal["a", "b"]


def test_helpers_of_openai(client: openai.OpenAI, handle: Any, model: Any) -> None:
    """Raw and streamed responses, the async client, accumulated streams, answers and tool calls parsed into classes."""
    seed = lasting(model, list(PROMPT), 12)
    want = bytes_text(expected(model, list(PROMPT), 12, seed=seed))
    ask: Any = {
        "model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 12, "seed": seed,
    }  # fmt: skip
    raw = client.chat.completions.with_raw_response.create(**ask)
    assert raw.parse().choices[0].message.content == want
    assert raw.headers["x-request-id"] == raw.request_id
    with client.chat.completions.with_streaming_response.create(**ask) as answer:
        assert json.loads(answer.read())["choices"][0]["message"]["content"] == want
    said = want[: want.index(want[-1])]  # it takes an answer that max_tokens cuts off for an error
    with client.chat.completions.stream(**ask, stop=want[-1], stream_options={"include_usage": True}) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == said
    assert final.usage is not None

    async def several() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=handle.url + "/v1", api_key="none", max_retries=0) as others:
            rows = await asyncio.gather(*[others.chat.completions.create(**ask) for _ in range(3)])
            made = await others.chat.completions.create(**ask, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in made]
            return [*[row.choices[0].message.content for row in rows], "".join(pieces)]

    assert asyncio.run(several()) == [want] * 4
    shorter = client.with_options(timeout=0.001)
    with pytest.raises(openai.APITimeoutError):
        shorter.chat.completions.create(**ask | {"max_completion_tokens": 900})
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    longer = ask | {"max_completion_tokens": 900}  # a random model writes as many spaces as it may
    parsed = client.chat.completions.parse(**longer, response_format=Kind).choices[0].message.parsed
    assert parsed is not None
    tool = openai.pydantic_function_tool(Kind)
    called = client.chat.completions.parse(**longer, tools=[tool], tool_choice="required").choices[0].message.tool_calls
    assert called is not None
    assert isinstance(called[0].function.parsed_arguments, Kind)


def test_langchain(handle: Any, model: Any) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: nox -s clients")
    seed = lasting(model, list(PROMPT), 12)
    want = bytes_text(expected(model, list(PROMPT), 12, seed=seed))
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
    longer = chat.model_copy(update={"max_tokens": 900})  # a random model writes as many spaces as it may
    assert longer.with_structured_output(schema, method="json_schema").invoke("Hello")["kind"] in ("a", "b")
    bound = longer.bind_tools([schema], tool_choice="required")
    assert bound.invoke("Hello").tool_calls[0]["args"]["kind"] in ("a", "b")
    vectors = langchain.OpenAIEmbeddings(
        base_url=handle.url + "/v1", api_key="none", model="tiny", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(["a", "b"])) == 2


@pytest.mark.filterwarnings("ignore")  # its own, of pydantic
def test_litellm(handle: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the net for prices
    litellm = pytest.importorskip("litellm", reason="litellm is not installed: nox -s clients")
    seed = lasting(model, list(PROMPT), 12)
    want = bytes_text(expected(model, list(PROMPT), 12, seed=seed))
    said: Any = {
        "model": "openai/tiny", "api_base": handle.url + "/v1", "api_key": "none", "max_tokens": 12, "seed": seed,
        "messages": [{"role": "user", "content": "Hello"}],
    }  # fmt: skip
    assert litellm.completion(**said).choices[0].message.content == want
    pieces = list(litellm.completion(**said, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == want
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    made = litellm.completion(**said | {"max_tokens": 900}, tools=[tool], tool_choice="required")
    assert json.loads(made.choices[0].message.tool_calls[0].function.arguments) is not None
