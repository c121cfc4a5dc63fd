"""The command line: surfaces that users type are frozen here."""

from __future__ import annotations

import json

import pytest

from fastsnn_core import cli

SPEC = "fastsnn = 1\n[model]\nkind = 'nothing'\n"


def test_verbs_are_these(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("plugins", "show", "check", "new-plugin", "test"):
        assert f"\n  {verb} " in text
    assert cli.main([]) == cli.EXIT_USER
    assert cli.main(["--version"]) == 0


def test_an_unknown_verb_says_what_there_is(capsys):
    assert cli.main(["plugin"]) == cli.EXIT_USER
    assert "no verb 'plugin'; did you mean 'plugins'?" in capsys.readouterr().err


def test_check_reports_as_json(tmp_path, capsys):
    (tmp_path / "s.toml").write_text(SPEC)
    assert cli.main(["check", str(tmp_path / "s.toml"), "--json"]) == cli.EXIT_USER
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["problems"][0]["line"] == 3
    assert "no model called 'nothing'" in found["problems"][0]["message"]
    assert cli.main(["check", str(tmp_path / "missing.toml")]) == cli.EXIT_USER
    assert "missing.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["new-plugin", "nerve", "acme"], "no kind called 'nerve'; kinds: surrogate, neuron"),
        (["new-plugin", "neuron", "Acme Lif"], "is no plugin name"),
        (["new-plugin", "neuron", "class"], "is no plugin name"),
        (["-p"], "-p needs the path"),
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


def test_bugs_keep_their_traceback():
    assert not cli.is_user_error(RuntimeError("a bug"))
    assert cli.is_user_error(ValueError("bad input"))
