"""``show`` and ``new-plugin``: what they write and what they refuse."""

from __future__ import annotations

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
