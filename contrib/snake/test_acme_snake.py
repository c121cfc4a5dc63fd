"""The kit over this plugin, and the plugin in an environment of its own, where `convert` finds it by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from acme_snake import Snake, SnakeRule

from fastsnn_conversion.testing import check_rule
from fastsnn_core.testing import conformance

test_snake = conformance("snake")

CONVERTS = """
import torch
from acme_snake import Snake
from fastsnn_convert import convert
from fastsnn_core import load

torch.manual_seed(0)
ann = torch.nn.Sequential(torch.nn.Linear(6, 12), Snake(12), torch.nn.Linear(12, 3))
x = torch.randn(512, 6)
done = convert(ann, calibration=x, steps=6, to="snake.snn")
row = next(r for r in done.report["modules"] if r["class"] == "Snake")
assert (row["status"], row["rule"]) == ("converted", "snake"), row
assert row["spikes_per_channel"] > 0.1, row
assert done.report["quality"]["output_error"] < 0.05, done.report.summary()
again = load("snake.snn")
assert torch.equal(again(x), done.model.eval()(x))
print("converted, saved and loaded")
"""


def test_the_rule_keeps_the_value_and_makes_spikes():
    assert check_rule(SnakeRule(), Snake(5, 0.7), torch.randn(4, 5)).spikes == "out"
    assert check_rule(SnakeRule(), Snake(5), torch.randn(4, 5), wanted=False).status == "kept"


@pytest.mark.slow
def test_in_an_environment_of_its_own(tmp_path):
    """A fresh venv: torch and FastSNN seen through a path file, this distribution really installed into it."""
    import fastsnn_convert

    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    own = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    purelib = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    where = subprocess.run([own, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip()
    root = Path(fastsnn_convert.__file__).resolve().parents[4]
    folders = [root, *(p.parent for p in root.glob("plugins/*/*/pyproject.toml"))]
    ours = [p for p in sys.path if p.endswith("site-packages")] + [str(p) for p in folders]
    Path(where, "parent.pth").write_text("\n".join(ours))
    quiet = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--force-reinstall"]
    install = [own, "-m", "pip", "install", *quiet, str(Path(__file__).parent)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    look = [own, "-c", "import acme_snake; print(acme_snake.__file__)"]
    found = subprocess.run(look, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert str(home) in found.stdout, found.stdout + found.stderr
    done = subprocess.run([own, "-c", CONVERTS], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "converted, saved and loaded", done.stderr
