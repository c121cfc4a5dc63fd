"""No long silence from Python, either: a call that imports PyTorch says so first, and once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "core"))
from test_cli import STARTS

SCRIPT = STARTS.rpartition("cli.main(")[0] + "from fastsnn import FastSNN\nexec(sys.argv[2])\n"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("FastSNN.build(arch='snn-tiny')", "build"),
        ("FastSNN.load('nowhere.snn')", "load"),
        ("FastSNN.generate('nowhere.snn', 'a')", "generate"),
        ("cli.notice_of_start(['eval', '--json']); FastSNN.load('nowhere.snn')", ""),  # a verb that was asked for JSON
    ],
)
def test_a_call_says_that_it_starts_before_the_heavy_imports(call: str, name: str) -> None:
    wait = "30" if name else "0.3"
    done = subprocess.run([sys.executable, "-c", SCRIPT, wait, call], capture_output=True, text=True, timeout=300)
    wanted = f"FastSNN {name}: starting (importing PyTorch and plugins" if name else "import first"
    assert done.stdout.startswith(wanted), done
    assert done.stdout.count("starting") == bool(name), done
