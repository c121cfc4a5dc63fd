"""Kernels in Triton's interpreter equal their naive twins, compile without a GPU, and wait where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastsnn_core import ops
from fastsnn_core.ops.dispatch import OPERATORS
from fastsnn_core.testing import conformance
from fastsnn_kernel_triton import TABLE, TritonKernels
from fastsnn_leaky.scan import lif_scan

test_triton = conformance("triton")

HERE = Path(__file__).parent
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(script, **env):
    command = [sys.executable, str(HERE / script)]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@installed
def test_every_kernel_equals_its_naive_twin_in_the_interpreter():
    assert "all kernels equal" in run("interpreted.py", TRITON_INTERPRET="1")


@installed
def test_every_kernel_compiles_for_two_generations(tmp_path):
    said = run("compiled.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert [line.split()[0] for line in said.splitlines()] == ["80"] * 6 + ["90"] * 6


def test_it_is_there_and_inactive_without_a_device():
    assert TABLE.keys() <= OPERATORS.keys()
    why = TritonKernels().why_not()
    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        assert why is None
        return
    assert why in ("triton is not installed; pip install triton", "there is no CUDA device")
    lif_scan(torch.zeros(1, 2, 3), beta=0.5, lo=0.0, hi=1.0)
    assert ops.paths()["lif_scan"] != "triton"


def test_finding_the_plugin_imports_no_triton():
    code = "import sys, fastsnn_kernel_triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
