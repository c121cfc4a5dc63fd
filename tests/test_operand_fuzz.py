"""Operators and kernels under random wrong operands: never a signal; a clear error, or the naive twin's numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_operands_never_end_the_process(seed: int) -> None:
    script = Path(__file__).with_name("operand_fuzz.py")
    done = subprocess.run(
        [sys.executable, script, str(seed), os.environ.get("FASTSNN_ROUNDS", "8")],
        capture_output=True, text=True, env=os.environ | {"MALLOC_PERTURB_": "165"}, timeout=550, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-12:]
    assert done.returncode == 0, f"ended with {done.returncode}: " + "\n".join(last)
