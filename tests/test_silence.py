"""No long silence from Python, either: a call that imports PyTorch says so first, and once."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading
from fastsnn_core import cli

said = threading.Event()
cli.SILENCE = 0.0
cli.StderrHandler.write = staticmethod(lambda text: (print(text), said.set()))

class Waits:
    '''The heavy import does not begin before the notice stands on the console, and ends the process.'''
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("notice first" if said.wait(float(sys.argv[1])) else "import first")
            raise SystemExit
        return None

sys.meta_path.insert(0, Waits())
from fastsnn import FastSNN
exec(sys.argv[2])
"""


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
