"""The command line: surfaces that users type are frozen here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastsnn_core import cli
from fastsnn_core.errors import FastSNNError
from fastsnn_core.plugins import LookupFailure, registry

INLINE = """
from attrs import frozen
from fastsnn_core import Neuron, hookimpl


@frozen
class Quiet(Neuron):
    name = "quiet"


@hookimpl
def fastsnn_neurons():
    return [Quiet]
"""
SPEC = "fastsnn = 1\n[model]\nkind = 'nothing'\n"


def test_verbs_are_these(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("plugins", "check"):
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


def test_an_option_without_its_file_is_named(capsys):
    assert cli.main(["-p"]) == cli.EXIT_USER
    assert "-p needs the path" in capsys.readouterr().err


def fails(error):
    def verb(argv):
        raise error

    return verb


@pytest.mark.parametrize(
    "error", [KeyError("boom"), IndexError("list index"), RuntimeError("a bug"), TypeError("x"), OSError("no path")]
)
def test_bugs_show_their_traceback_and_ask_for_a_report(error, capsys, monkeypatch):
    monkeypatch.setitem(cli.OWN, "boom", fails(error))
    assert cli.main(["boom"]) == cli.EXIT_BUG == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "this is a bug of FastSNN or of a plugin" in said
    assert "fastsnn-core 0." in said
    assert "torch" in said


def test_a_file_of_ours_that_is_missing_is_a_bug(capsys, monkeypatch):
    own = str(Path(cli.__file__).with_name("nothing.txt"))
    monkeypatch.setitem(cli.OWN, "boom", lambda argv: Path(own).read_text())
    assert cli.main(["boom"]) == cli.EXIT_BUG
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FastSNNError("steps must be 1"), "fastsnn: steps must be 1\n"),
        (LookupFailure("no neuron 'x'", "did you mean 'y'?"), "fastsnn: no neuron 'x'\n  help: did you mean 'y'?\n"),
        (FileNotFoundError(2, "No such file or directory", "/x/y"), "fastsnn: /x/y: No such file or directory\n"),
        (OSError(28, "No space left on device"), "fastsnn: No space left on device\n"),
        (MemoryError(), "fastsnn: out of memory\n"),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("how", ["plain", "--traceback", "FASTSNN_TRACEBACK"])
def test_mistakes_are_one_line_and_the_traceback_is_there_on_request(error, says, how, capsys, monkeypatch):
    monkeypatch.setitem(cli.OWN, "boom", fails(error))
    if how == "FASTSNN_TRACEBACK":
        monkeypatch.setenv(how, "1")
    words = ["boom", "--traceback"] if how == "--traceback" else ["boom"]
    assert cli.main(words) == cli.EXIT_USER
    said = capsys.readouterr().err
    assert said.endswith(says)
    assert ("Traceback" in said) == (how != "plain")
    assert "a bug" not in said


def test_an_inline_plugin_that_cannot_run_is_named_with_its_line(tmp_path, capsys):
    for text, says in (
        ("x = 1\ndef f(:\n", "broken.py:2: SyntaxError"),
        ("x = 1\nimport nothing_like_that\n", "broken.py:2: ModuleNotFoundError"),
        ("import sys\n\nsys.exit(3)\n", "broken.py:3: SystemExit"),
    ):
        (tmp_path / "broken.py").write_text(text)
        assert cli.main(["-p", str(tmp_path / "broken.py"), "show", "x"]) == cli.EXIT_USER
        said = capsys.readouterr().err
        assert says in said
        assert "Traceback" not in said


def test_an_inline_plugin_called_like_a_module_shadows_nothing(tmp_path, capsys):
    (tmp_path / "json.py").write_text(INLINE)
    assert (
        cli.main(["-p", str(tmp_path / "json.py"), "-p", str(tmp_path / "json.py"), "plugins", "--kind", "neuron"]) == 0
    )
    assert "neuron quiet" in capsys.readouterr().out
    assert registry().find("neuron", "quiet")[0] == "json/quiet", "loading a file twice makes no name ambiguous"
    assert sys.modules["json"] is json
    registry().forget("json", str(tmp_path / "json.py"))
    assert "quiet" not in registry().names("neuron")


def test_every_verb_has_its_sentence_and_nothing_is_imported():
    code = "import sys, fastsnn_core.cli as c; print(c.usage_text()); print([m for m in sys.argv if m in sys.modules])"
    heavy = ["torch", "numpy", "matplotlib", "fastsnn_train", "fastsnn_serve", "fastsnn_convert"]
    text = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True).stdout
    assert text.endswith("\n[]\n")
    for verb in (*cli.OWN, *cli.added()):
        line = next(row for row in text.splitlines() if row.startswith(f"  {verb} "))
        assert len(line.split()) > 4, f"{verb} says nothing of itself"


def test_a_first_party_verb_that_is_not_installed_says_what_brings_it(capsys, monkeypatch):
    monkeypatch.setattr(cli, "added", dict)
    assert cli.main(["lm-eval"]) == cli.EXIT_USER
    assert "pip install fastsnn-lm-eval" in capsys.readouterr().err


def test_plugins_of_a_kind_that_there_is_not(capsys):
    assert cli.main(["plugins", "--kind", "neurons"]) == cli.EXIT_USER
    assert "--kind: no 'neurons'; did you mean 'neuron'?" in capsys.readouterr().err


def test_the_catalogue_of_verbs_is_what_the_plugins_declare():
    import tomllib

    from fastsnn_core.catalogue import VERBS

    found = {}
    for path in Path(cli.__file__).parents[1].glob("plugins/*/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        found |= dict.fromkeys(project.get("entry-points", {}).get("fastsnn1.commands", {}), project["name"])
    assert found == VERBS


STARTS = """
import sys, threading
from fastsnn_core import cli

said = threading.Event()
cli.SILENCE = 0.0
cli.StderrHandler.write = staticmethod(lambda text: (print(text), said.set()))

class Waits:
    '''The heavy import does not begin before the notice stands on the console.'''
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("notice first" if said.wait(float(sys.argv[1])) else "import first")
            raise SystemExit
        return None

sys.meta_path.insert(0, Waits())
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("words", "wait", "wanted"),
    [
        (["plugins", "--json"], "0.5", "import first"),
        (["plugins"], "120", "fastsnn plugins: starting (importing PyTorch and plugins; a first run compiles kernels"),
    ],
)
def test_a_verb_says_that_it_starts_before_the_heavy_imports(words, wait, wanted):
    done = subprocess.run([sys.executable, "-c", STARTS, wait, *words], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(wanted), done
    assert ("notice first" in done.stdout) == (wait == "120")


def test_a_verb_whose_imports_are_done_says_nothing_of_its_start(monkeypatch):
    import torch  # noqa: F401

    monkeypatch.setattr(cli, "SILENCE", 0.0)
    notice = cli.notice_of_start(["check"])
    assert not notice.is_alive()
