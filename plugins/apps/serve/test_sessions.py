"""Sessions in files: saved by one server, gone on from by another; other models, damage and full disks are said."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from fastsnn_serve import app
from fastsnn_serve.testing import TEXT, bytes_text, decoder, expected


def complete(http: Any, ids: list[int]) -> tuple[str, int]:
    """Text, and how many tokens came from the cache."""
    made = http.post("/v1/completions", json={"prompt": ids, "max_tokens": 12, "seed": 4}).json()
    return made["choices"][0]["text"], made["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("kind", ["integer", "float"])
def test_a_session_moves_between_servers(kind: str, integer: Any, tmp_path: Path) -> None:
    model = integer if kind == "integer" else decoder()
    ids = list((TEXT * 2).encode())[:64]
    longer = [*ids, 65, 66]
    want = bytes_text(expected(model, longer, 12, seed=4, chunk=16))
    with TestClient(app(model, "m", chunk=16, sessions=tmp_path)) as first:
        text = bytes(ids).decode()
        saved = first.post("/sessions/save", json={"name": "story-1", "prompt": text}).json()
        assert (saved["name"], saved["tokens"]) == ("story-1", 64)
        assert first.get("/sessions").json()["data"] == [{"name": "story-1"}]
        asked = {"name": "chat", "messages": [{"role": "user", "content": "Hi"}]}
        assert first.post("/sessions/save", json=asked).json()["tokens"] == len("User: Hi\nAssistant:")
        assert complete(first, longer) == (want, 64)
    with TestClient(app(model, "other-name", chunk=16, sessions=tmp_path)) as second:
        assert complete(second, longer) == (want, 0)
    with TestClient(app(model, chunk=16, sessions=tmp_path)) as third:
        assert third.post("/sessions/restore", json={"name": "story-1"}).json()["tokens"] == 64
        assert complete(third, longer) == (want, 64)
        for name, says in (
            ("nothing", "no session 'nothing' here; there are: chat, story-1"),
            ("../x", "letters, digits"),
        ):
            answer = third.post("/sessions/restore", json={"name": name})
            assert answer.status_code == 400
            assert says in answer.json()["error"]["message"]


def test_other_models_cuts_and_damaged_files_are_refused(tmp_path: Path) -> None:
    model = decoder()
    with TestClient(app(model, chunk=16, sessions=tmp_path)) as http:
        assert http.post("/sessions/save", json={"name": "s", "prompt": "spike"}).status_code == 200
    changed = decoder()
    with torch.no_grad():
        changed.embed.weight[3, 3] += 1e-3
    templated = decoder()
    templated.meta = templated.meta | {"chat_template": "{{ messages[0].content }}"}
    tiny = {"chunk": 16, "cache_bytes": 100}
    for other, options, says in (
        (changed, {"chunk": 16}, "of another model"), (decoder(), {"chunk": 8}, "of another arithmetic"),
        (templated, {"chunk": 16}, "of another template"), (decoder(), tiny, "does not fit the prefix cache"),
    ):  # fmt: skip
        with TestClient(app(other, sessions=tmp_path, **options)) as http:
            answer = http.post("/sessions/restore", json={"name": "s"})
            assert answer.status_code == 400
            assert says in answer.json()["error"]["message"], answer.text
    file = tmp_path / "s.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with TestClient(app(model, chunk=16, sessions=tmp_path)) as http:
        assert "damaged" in http.post("/sessions/restore", json={"name": "s"}).json()["error"]["message"]
    with TestClient(app(model)) as http:
        assert "--sessions" in http.get("/sessions").json()["error"]["message"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(app(decoder(), sessions=tmp_path)) as http:
        assert http.post("/sessions/save", json={"name": "s", "prompt": "one"}).status_code == 200
        before = (tmp_path / "s.safetensors").read_bytes()

        def full(self: Path, data: bytes) -> int:
            with self.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as disk:
            disk.setattr(Path, "write_bytes", full)
            answer = http.post("/sessions/save", json={"name": "s", "prompt": "another text"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "cannot_write")
        assert "No space left" in answer.json()["error"]["message"]
        assert (tmp_path / "s.safetensors").read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
