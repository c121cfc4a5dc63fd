"""Isolation: whatever a plugin does wrong costs one line and a status, nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

GOOD = """
    from attrs import frozen
    from fastsnn_core import Surrogate, hookimpl

    @frozen
    class Good(Surrogate):
        '''d = 1.'''
        name = "good"
        def derivative(self, u, first, last):
            return u.new_ones(u.shape)

    @hookimpl
    def fastsnn_surrogates():
        return [Good]
"""
BAD = {
    "raises": "raise ImportError('libnothing.so is missing')",
    "exits": "import sys; sys.exit('I quit')",
    "in_hook": "from fastsnn_core import hookimpl\n@hookimpl\ndef fastsnn_neurons():\n    raise RuntimeError('no')",
    "misspelt": "from fastsnn_core import hookimpl\n@hookimpl\ndef fastsnn_nuerons():\n    return []",
    "nonsense": "from fastsnn_core import hookimpl\n@hookimpl\ndef fastsnn_neurons():\n    return [3]",
}


@pytest.fixture
def site(tmp_path):
    """A folder of fake distributions to put on the path."""

    def add(name, code, group="fastsnn1", needs=""):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"acme_{name}-1.0.dist-info"
        info.mkdir()
        says = f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(says + (f"Requires-Dist: {needs}\n" if needs else ""))
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")
        return tmp_path

    return add


def fastsnn(folder, *words, **env):
    env = os.environ | {"PYTHONPATH": str(folder), "FASTSNN_STRICT": "", "FASTSNN_DISABLE": ""} | env
    return subprocess.run(
        [sys.executable, "-m", "fastsnn_core", *words], capture_output=True, text=True, env=env, check=False
    )


def test_broken_plugins_cost_one_line_each(site):
    site("good", GOOD)
    for name, code in BAD.items():
        folder = site(name, code)
    done = fastsnn(folder, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    rows = {r["name"]: r for r in json.loads(done.stdout)}
    assert rows["good"]["status"] == "ok"
    assert rows["good"]["offers"] == {"surrogate": ["good"]}
    assert {n: rows[n]["status"] for n in BAD} == {n: "partial" if n == "misspelt" else "broken" for n in BAD}
    assert "libnothing.so is missing" in rows["raises"]["error"]
    assert "did you mean 'fastsnn_neurons'?" in rows["misspelt"]["error"]
    ours = [line for line in done.stderr.splitlines() if any(f"plugin {n} " in line for n in BAD)]
    assert len(ours) == len(done.stderr.splitlines()) == len(BAD), done.stderr


def test_metadata_alone_works_when_everything_is_broken(site):
    folder = site("exits", BAD["exits"])
    done = fastsnn(folder, "plugins", "--no-load", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert {"exits": "found"}.items() <= {r["name"]: r["status"] for r in json.loads(done.stdout)}.items()


def test_the_table_says_which_plugins_fit_this_core(site):
    site("silent", GOOD)
    site("older", GOOD, needs="fastsnn_core>=99,<100")
    site("garbled", GOOD, needs="fastsnn-core >= , what")
    folder = site("fits", GOOD, needs="fastsnn-core>=0.1,<1")
    rows = json.loads(fastsnn(folder, "plugins", "--no-load", "--json").stdout)
    found = {r["name"]: r["fits_core"] for r in rows}
    assert {"silent": "?", "garbled": "?", "older": "no: needs <100,>=99", "fits": "yes"}.items() <= found.items()
    ours = [r for r in rows if r["distribution"].startswith("fastsnn-")]
    assert {r["fits_core"] for r in ours} <= {"yes"}
    table = fastsnn(folder, "plugins", "--no-load").stdout.splitlines()
    assert table[0].split()[:5] == ["name", "distribution", "version", "fits", "core"]
    (row,) = (line.split() for line in table if line.startswith("older "))
    assert row[:5] == ["older", "acme-older", "1.0", "no:", "needs"]


def test_disable_strict_and_other_api(site):
    site("raises", BAD["raises"])
    folder = site("future", GOOD, group="fastsnn2")
    rows = {r["name"]: r for r in json.loads(fastsnn(folder, "plugins", "--json", FASTSNN_DISABLE="raises").stdout)}
    assert rows["raises"]["status"] == "disabled"
    assert (rows["future"]["status"], "speaks plugin API 2" in rows["future"]["error"]) == ("other-api", True)
    done = fastsnn(folder, "plugins", FASTSNN_STRICT="1")
    assert done.returncode != 0
    assert "is other-api" in done.stderr or "is broken" in done.stderr


def test_an_inline_plugin_is_explicit(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(GOOD))
    assert "surrogate good" not in fastsnn(tmp_path, "plugins").stdout
    done = fastsnn(tmp_path, "-p", str(tmp_path / "mine.py"), "plugins")
    assert "surrogate good" in done.stdout, done.stderr
    assert "no plugin file" in fastsnn(tmp_path, "-p", "nothing.py", "plugins").stderr


@pytest.mark.parametrize("words", [("--help",), ("plugins", "--no-load")])
def test_help_imports_neither_torch_nor_plugins(site, words):
    folder = site("exits", BAD["exits"])
    code = (
        "import sys, fastsnn_core\nfrom fastsnn_core.cli import main\n"
        f"main({list(words)!r})\n"
        "heavy = [m for m in ('torch', 'matplotlib', 'datasets', 'cattrs') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    env = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("0.3.0rc1", ">=0.3", False),
        ("0.4.0rc1", ">=0.3", True),
        ("0.3.1", "~=0.3", True),
        ("1.0", "~=0.3", False),
        ("1", "?", None),
    ],
)
def test_requirements_are_read_as_pep_440_has_them(version, wanted, met):
    from fastsnn_core.versions import satisfies

    assert satisfies(version, wanted) is met
