"""The server as the openai client sees it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from starlette.testclient import TestClient

from fastsnn_serve import app
from fastsnn_serve.testing import TEXT, bytes_text, decoder, expected
from fastsnn_text import Sampling, generate_text


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "fastsnn"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.8, "seed": 5}])
def test_completion_is_generate_ids(client: openai.OpenAI, model: Any, sampling: dict[str, Any]) -> None:
    ids = expected(model, list(TEXT.encode()), 24, **sampling)
    answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=24, **sampling)
    assert answer.choices[0].text == bytes_text(ids)
    assert answer.usage.completion_tokens == len(ids)
    assert answer.usage.prompt_tokens == len(TEXT)
    by_ids = client.completions.create(
        model="tiny", prompt=list(TEXT.encode()), max_tokens=24, extra_body={"top_k": -1}, **sampling
    )
    assert by_ids.choices[0].text == answer.choices[0].text
    streamed = list(client.completions.create(model="tiny", prompt=TEXT, max_tokens=24, stream=True, **sampling))
    assert "".join(c.choices[0].text for c in streamed) == answer.choices[0].text
    assert streamed[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert len({c.id for c in streamed}) == 1


def test_top_k_is_honoured(client: openai.OpenAI, model: Any) -> None:
    ids = expected(model, list(b"ab"), 16, temperature=2.0, top_k=2, seed=1)
    assert ids != expected(model, list(b"ab"), 16, temperature=2.0, seed=1)
    made = client.completions.create(
        model="tiny", prompt="ab", max_tokens=16, temperature=2.0, seed=1, extra_body={"top_k": 2}
    )
    assert made.choices[0].text == bytes_text(ids)


def test_many_prompts_many_choices(client: openai.OpenAI, model: Any) -> None:
    made = client.completions.create(model="tiny", prompt=["one", "two"], n=2, seed=7, max_tokens=8)
    assert [c.index for c in made.choices] == [0, 1, 2, 3]
    wanted = [expected(model, list(p), 8, seed=s) for p in (b"one", b"two") for s in (7, 8)]
    assert [c.text for c in made.choices] == [bytes_text(ids) for ids in wanted]
    assert made.usage.prompt_tokens == 6
    ids = client.completions.create(model="tiny", prompt=[[1, 2], [3]], max_tokens=2, temperature=0)
    assert [c.text for c in ids.choices] == [bytes_text(expected(model, p, 2, temperature=0.0)) for p in ([1, 2], [3])]


def test_chat(client: openai.OpenAI, model: Any) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ]
    prompt = "System: Be brief.\nUser: Hello\nAssistant:"
    want = bytes_text(expected(model, list(prompt.encode()), 20, seed=3))
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=20, seed=3)
    assert answer.choices[0].message.content == want
    assert answer.choices[0].message.role == "assistant"
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=20, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == want
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_stop_strings(client: openai.OpenAI, model: Any) -> None:
    wholes = ((seed, bytes_text(expected(model, list(TEXT.encode()), 40, seed=seed))) for seed in range(50))
    pairs = ((seed, w[i : i + 2], w) for seed, w in wholes for i in range(6, len(w) - 4))
    seed, stop, whole = next(found for found in pairs if "�" not in found[1] and found[2].index(found[1]) > 5)
    want = whole[: whole.index(stop)]
    assert "".join(generate_text(model, TEXT, 40, Sampling(seed=seed), stop=(stop,))) == want
    for given_stop in (stop, ["never there", stop]):
        answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=40, seed=seed, stop=given_stop)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (want, "stop")
        chunks = client.completions.create(
            model="tiny", prompt=TEXT, max_tokens=40, seed=seed, stop=given_stop, stream=True, logprobs=0
        )
        pieces = [c.choices[0] for c in chunks]
        assert "".join(p.text for p in pieces) == want
        offsets = [o for p in pieces if p.logprobs for o in p.logprobs.text_offset]
        assert offsets == sorted(offsets)
        assert max(offsets) < len(want)


def test_end_token_ends() -> None:
    model = decoder()
    ids = expected(model, [65], 200, seed=1)
    with torch.no_grad():
        model.embed.weight[256] = model.embed.weight[ids[4]] * 50  # now the end is likelier than anything
    ids = expected(model, [65], 200, seed=1)
    assert len(ids) < 200
    with TestClient(app(model)) as http_client:
        body = {"prompt": [65], "max_tokens": 200, "seed": 1}
        made = http_client.post("/v1/completions", json=body).json()
        scored = http_client.post("/v1/completions", json=body | {"logprobs": 1, "echo": True}).json()["choices"][0]
        chat = {"messages": [{"role": "user", "content": "A"}], "max_tokens": 200, "seed": 1, "logprobs": True}
        talk = http_client.post("/v1/chat/completions", json=chat).json()["choices"][0]
    assert made["choices"][0] == {"index": 0, "text": bytes_text(ids), "logprobs": None, "finish_reason": "stop"}
    assert made["usage"]["completion_tokens"] == len(ids)
    assert scored["logprobs"]["tokens"][-1] == "token_id:256"  # lm-eval takes the last token off
    assert len(scored["logprobs"]["token_logprobs"]) == 1 + len(ids) + 1
    assert scored["logprobs"]["text_offset"][-1] == len(scored["text"])
    assert talk["finish_reason"] == "stop"
    said = bytes(byte for token in talk["logprobs"]["content"] for byte in token["bytes"])
    assert said.decode("utf-8", "replace") == talk["message"]["content"]


def test_logprobs_and_echo_as_lm_eval_asks(client: openai.OpenAI, model: Any) -> None:
    """`echo`, `logprobs`, one token: it sums token_logprobs over the continuation; greedy where they are the maxima."""
    context, continuation = list(b"The cat sat on"), list(b" the mat")
    prompt = context + continuation
    made = client.completions.create(
        model="tiny", prompt=[prompt], max_tokens=1, logprobs=1, echo=True, seed=1234, temperature=0
    )
    found = made.choices[0].logprobs
    with torch.inference_mode():
        table = model(torch.tensor([prompt])).float().log_softmax(-1)[0]
    want = [float(table[i - 1, t]) for i, t in enumerate(prompt) if i]
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:-1] == pytest.approx(want, abs=1e-5)
    assert len(found.tokens) == len(found.top_logprobs) == len(found.text_offset) == len(prompt) + 1
    assert [max(top.values()) for top in found.top_logprobs[1:-1]] == pytest.approx(
        table[:-1].max(-1).values.tolist(), abs=1e-5
    )
    for got, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
        assert got in top.values()
    assert made.choices[0].text == bytes_text(prompt + expected(model, prompt, 1, temperature=0.0))
    assert found.text_offset == list(range(len(prompt) + 1))
    nothing = client.completions.create(model="tiny", prompt="abc", max_tokens=0, logprobs=2, echo=True)
    assert nothing.choices[0].text == "abc"
    assert nothing.usage.completion_tokens == 0
    assert len(nothing.choices[0].logprobs.token_logprobs) == 3
    streamed = client.completions.create(
        model="tiny", prompt="abc", max_tokens=3, logprobs=2, echo=True, stream=True, seed=0
    )
    parts = [c.choices[0] for c in streamed]
    assert parts[0].text == "abc"
    assert sum(len(p.logprobs.tokens) for p in parts if p.logprobs) == 6


def test_echo_reads_long_prompts_in_chunks() -> None:
    model, prompt = decoder(), list((TEXT * 2).encode())
    with TestClient(app(model, chunk=16)) as http_client:
        body = {"prompt": prompt, "max_tokens": 5, "logprobs": 0, "echo": True, "seed": 4}
        made = http_client.post("/v1/completions", json=body).json()
        alone = http_client.post("/v1/completions", json=body | {"echo": False}).json()
    ids = expected(model, prompt, 5, chunk=16, seed=4)
    assert made["choices"][0]["text"] == bytes_text(prompt + ids)
    found = made["choices"][0]["logprobs"]["token_logprobs"]
    assert found[len(prompt) :] == alone["choices"][0]["logprobs"]["token_logprobs"]  # to the bit
    with torch.inference_mode():
        table = model(torch.tensor([prompt])).float().log_softmax(-1)[0]
    assert found[1 : len(prompt)] == pytest.approx(
        [float(table[i - 1, t]) for i, t in enumerate(prompt) if i], abs=1e-3
    )


def test_chat_logprobs(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
        temperature=0,
    )
    content = made.choices[0].logprobs.content
    assert len(content) == 4
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
    assert (
        "".join(bytes(b for t in content for b in t.bytes).decode("utf-8", "replace"))
        == made.choices[0].message.content
    )


def test_eight_clients_at_once(client: openai.OpenAI, model: Any) -> None:
    """Everybody gets what they would get alone."""
    prompts = [TEXT[i:] + str(i) for i in range(8)]
    wanted = [bytes_text(expected(model, list(p.encode()), 30, seed=i)) for i, p in enumerate(prompts)]

    def ask(i: int) -> str:
        if i % 2:
            return client.completions.create(model="tiny", prompt=prompts[i], max_tokens=30, seed=i).choices[0].text
        chunks = client.completions.create(model="tiny", prompt=prompts[i], max_tokens=30, seed=i, stream=True)
        return "".join(c.choices[0].text for c in chunks)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == wanted
