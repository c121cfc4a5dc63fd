"""The gallery runs: each script leaves its figure. CI runs those that train nothing; `nox -s gallery` runs all."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
SCRIPTS = sorted(p for p in GALLERY.glob("*.py") if p.stem != "figure")
QUICK = {
    "adaptive_threshold", "coders", "delta_coding", "events_of_a_camera", "latency", "membrane", "neurons",
    "own_neuron", "sparsities", "surrogates",
}  # fmt: skip
PROMISED = {
    "born_sparse", "bundle_surgery", "convert_language", "dial", "digits_over_time", "distributed", "energy",
    "events_of_a_camera", "long_context", "nir_round_trip", "own_neuron", "own_rule", "sessions", "streaming",
}  # fmt: skip


def test_there_are_at_least_twenty_and_each_says_what_it_shows():
    assert len(SCRIPTS) >= 20
    assert {p.stem for p in SCRIPTS} >= QUICK | PROMISED
    for path in SCRIPTS:
        head, says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")
        assert head.endswith("."), path
        assert 20 < len(says) < 200, path
        assert says.count(". ") == 0, f"{path}: one sentence"


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow) for p in SCRIPTS], ids=lambda p: p.stem
)
def test_a_script_leaves_its_figure(path, tmp_path, monkeypatch):
    from fastsnn_core.plugins import registry

    found = registry()
    before = list(found.plugins), {k: {n: list(v) for n, v in t.items()} for k, t in found.components.items()}
    monkeypatch.syspath_prepend(str(GALLERY))
    monkeypatch.setenv("FASTSNN_GALLERY", str(tmp_path / "figures"))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("figure", None)  # it reads the folder once
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        found.plugins, found.components = before
    figure = tmp_path / "figures" / f"{path.stem}.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.stat().st_size > 5000  # something is drawn
    assert figure.with_suffix(".dark.png").stat().st_size > 5000
