"""``show`` and ``new-plugin``: what they write and what they refuse."""

from __future__ import annotations

import json

import pytest

from fastsnn_core import cli


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["new-plugin", "nerve", "acme"], "no kind called 'nerve'; kinds: surrogate, neuron"),
        (["new-plugin", "neuron", "Acme Lif"], "is no plugin name"),
        (["new-plugin", "neuron", "class"], "is no plugin name"),
        (["show", "nothing-like-it"], "no component called 'nothing-like-it'"),
        (["show", "nerve:lif"], "no kind called 'nerve'"),
    ],
)
def test_errors_say_what_is_possible(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == cli.EXIT_USER
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_new_plugin_never_overwrites(tmp_path, capsys):
    words = ["new-plugin", "coder", "acme-code", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert sorted(p.name for p in (tmp_path / "acme-code").iterdir()) == [
        "README.md",
        "acme_code.py",
        "pyproject.toml",
        "test_acme_code.py",
    ]
    assert cli.main(words) == cli.EXIT_USER
    assert "exists; it is left alone" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["torch", "json", "pytest", "fastsnn-core", "fastsnn_core"])
def test_new_plugin_takes_no_name_that_is_taken(name, tmp_path, capsys):
    assert cli.main(["new-plugin", "neuron", name, "--out", str(tmp_path)]) == cli.EXIT_USER
    assert "is taken by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bundle_shows_the_report_inside_it(tmp_path, monkeypatch, capsys):
    """Its first figures, and the page in a browser; what has none says how to get one."""
    decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
    from fastsnn_core import build, bundle

    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html>")
    saved = [{"key": "silent_bytes", "label": "silent bytes", "value": "41.5%", "says": "…", "number": 0.415}]
    (folder / "report.json").write_text(json.dumps({"created": "now", "saved": saved}))
    model = build(decoder(d_model=16, n_layers=1, n_heads=2))
    made = str(bundle.save(model, tmp_path / "a.snn", report=folder))
    bare = str(bundle.save(build(decoder(d_model=16, n_layers=1, n_heads=2)), tmp_path / "b.snn"))
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert cli.main(["show", made, "--open"]) == 0
    assert "  silent bytes: 41.5%" in capsys.readouterr().out
    assert opened == [(tmp_path / "a.snn" / "spike.report" / "index.html").as_uri()]
    assert cli.main(["show", bare]) == 0
    assert "report: none; fastsnn scope" in capsys.readouterr().out
    assert cli.main(["show", bare, "--open"]) == cli.EXIT_USER
    assert "holds no report" in capsys.readouterr().err
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert cli.main(["show", made, "--open"]) == cli.EXIT_USER
    assert "no browser opens here" in capsys.readouterr().err
