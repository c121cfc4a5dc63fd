"""The scaffold cannot rot: one plugin per kind is written, really installed, and passes its own conformance."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from fastsnn_author.scaffold import FUSED, HERE, ScaffoldError, new_plugin
from fastsnn_core.component import KINDS


def python(folder, *words, **env):
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=os.environ | env, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kind_has_a_template():
    fused = {f"{kind}_fused" for kind in FUSED}
    assert {p.name.partition(".")[0] for p in HERE.glob("*.py.tmpl")} - {"test"} == set(KINDS) | fused


def test_a_kind_without_a_fused_template_says_which_have_one(tmp_path):
    with pytest.raises(ScaffoldError, match=r"no fused form of a scope.*attention, neuron"):
        new_plugin("scope", "acme-scope", tmp_path, fused=True)
    assert not list(tmp_path.iterdir())


def test_one_plugin_per_kind_passes_its_conformance(tmp_path):
    folders = [new_plugin(kind, f"acme-{kind}", tmp_path) for kind in KINDS]
    folders += [new_plugin(kind, f"acme-fused-{kind}", tmp_path, fused=True) for kind in FUSED]
    site = tmp_path / "site"
    quiet = ["-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    python(tmp_path, "-m", "pip", "install", *quiet, "--target", str(site), *map(str, folders))
    names = [f"--fastsnn={folder.name.replace('-', '_')}" for folder in folders]
    out = python(
        tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "fastsnn_core.testing", *names,
        PYTHONPATH=str(site), FASTSNN_STRICT="1",
    )  # fmt: skip
    assert "passed" in out
    assert "failed" not in out


def test_a_scaffolded_plugin_in_an_environment_of_its_own(tmp_path):
    """A fresh venv (torch and core seen through a path file), a real ``pip install``, the plugin's own test file."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    own = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    where = subprocess.run(
        [own, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    ours = [path for path in sys.path if path]  # path files are not read in folders that a path file names
    Path(where, "parent.pth").write_text("\n".join(ours))
    folder = new_plugin("neuron", "acme-lif", tmp_path)
    install = [own, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", str(folder)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme_lif.py"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run([own, "-m", "fastsnn_core", "show", "acme_lif"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("neuron acme_lif/acme_lif")


@pytest.mark.parametrize(("kind", "fused"), [*((k, False) for k in sorted(KINDS)), *((k, True) for k in FUSED)])
def test_templates_are_ruff_clean(kind, fused, tmp_path):
    pytest.importorskip("ruff")
    folder = new_plugin(kind, "acme-thing", tmp_path, fused)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=E,F,W,B,UP", "--line-length=120", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fused"), [("neuron", ""), ("neuron", "fused"), ("attention", ""), ("attention", "fused"), ("rule", "")]
)
def test_what_new_plugin_writes_works_in_every_path(kind, fused, tmp_path):
    new_plugin(kind, f"acme-{kind}", tmp_path, bool(fused))
    quiet = ["-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    site = tmp_path / "site"
    python(tmp_path, "-m", "pip", "install", *quiet, "--target", str(site), str(tmp_path / f"acme-{kind}"))
    script = Path(__file__).with_name("stranger.py")
    out = python(tmp_path, str(script), kind, f"acme_{kind}", *[fused] * bool(fused), PYTHONPATH=str(site))
    assert f"{kind} acme_{kind}: every path agrees" in out
