"""Every code block a reader could copy runs: README, docs, plugins' READMEs, and the user's two documents."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("plugins/*/*/README.md"))]
PAGES += sorted([*ROOT.glob("contrib/*/README.md"), *ROOT.glob("docs/coming_from/*.md")])
BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

SEED_SIZES = {  # what would take too long on two cores, and the server that would never return
    "seq_len=2048)": "seq_len=64, max_steps=3, batch_size=2)",
    "new_seq_len=8192)": "new_seq_len=256, max_steps=1)",
    "port=8000)": "port=0, block=False).close()",
}


@pytest.fixture(autouse=True)
def registered():
    """What a page files under `add_module` goes with it: other tests go through all that is registered."""
    from fastsnn_core.plugins import registry

    found = registry()
    plugins, kinds = list(found.plugins), {k: {n: list(v) for n, v in t.items()} for k, t in found.components.items()}
    yield
    found.plugins, found.components = plugins, kinds


def blocks(text: str, language: str) -> list[str]:
    return [re.sub(rf"^{m[1]}", "", m[3], flags=re.MULTILINE) for m in BLOCK.finditer(text) if m[2] == language]


def run(parts: list[str], name: str) -> None:
    """All blocks of a page in one namespace, as a reader would go through it."""
    torch.manual_seed(0)
    space = {"__name__": "__main__"}
    for n, part in enumerate(parts, 1):
        exec(compile(part, f"{name} block {n}", "exec", dont_inherit=True), space)


def blank_lines(said: str) -> list[str]:
    """Lines of spaces only: a model's text that was shown, and looks like none."""
    return re.findall(r"^[ \t]{4,}$", said, re.MULTILINE)


def test_a_blank_text_is_seen():
    assert blank_lines("The cat\n" + " " * 20 + "\n")
    assert not blank_lines("The cat\n\n  sat\n")


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if blocks(p.read_text(encoding="utf-8"), "python")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_python_blocks_run(page, tmp_path, monkeypatch, data, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSNN_DATA", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(blocks(page.read_text(encoding="utf-8"), "python"), page.name)
    said = capsys.readouterr().out
    assert not blank_lines(said), f"a line of spaces only, which a reader takes for nothing: {said!r}"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p.read_text(encoding="utf-8"), "toml")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_toml_blocks_build(page):
    from fastsnn_kit.general import check_toml_blocks

    check_toml_blocks(page.read_text(encoding="utf-8"), page.name)


@pytest.mark.parametrize("number", [0, 1])
def test_the_seed_documents_run(number, tmp_path, monkeypatch, data):
    """Verbatim, apart from the sizes in SEED_SIZES."""
    seeds = sorted((data.parent / "seeds").glob("*.txt")) if (data.parent / "seeds").is_dir() else []
    if len(seeds) < 2:
        pytest.skip("the seed documents are not here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSNN_DATA", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = seeds[number].read_text(encoding="utf-8")
    for old, new in SEED_SIZES.items():
        text = text.replace(old, new)
    parts = blocks(text, "python")
    assert len(parts) == (1, 3)[number]
    run(parts, f"seed {number}")
    made = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    if number == 0:
        assert "artifacts/my_model.snn/weights.safetensors" in made
        assert "runs/exp_demo/index.html" in made
    assert os.getcwd() == str(tmp_path)
