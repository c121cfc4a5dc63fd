"""Memory that a step frees is found again without page faults, and is given back when training ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastsnn_train.loop.kept_memory import glibc

pytestmark = pytest.mark.skipif(glibc() is None, reason="no glibc whose allocator can be set")

SCRIPT = """
import resource
import torch
from fastsnn_train.loop.kept_memory import freed_memory_kept
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(12):
        rows = [torch.ones(16 << 20), torch.ones(8 << 20)]
        del rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    rows = open("/proc/self/status").read().splitlines()
    return int(next(row for row in rows if row.startswith("VmRSS")).split()[1])

faults()
print(faults())
before = held()
with freed_memory_kept():
    with freed_memory_kept():
        faults()
    print(faults(), held() - before)
print(held() - before, faults())
"""


RUNS = 6
"""Where something small lies above the tensors' memory (one run in four), glibc hands the same out again afterwards."""


def test_freed_memory_is_taken_again_inside_the_block_only():
    how = {"capture_output": True, "text": True, "check": True, "timeout": 120}
    tensors, usual, after = 96 << 10, 0, 0  # KiB
    for _ in range(RUNS):
        said = subprocess.run([sys.executable, "-c", SCRIPT], **how).stdout
        usual, inside, kept, left, after = map(int, said.split())
        assert inside < usual / 20
        assert kept > 0.9 * tensors
        assert left < 0.1 * tensors
        if after > usual / 2:
            break
    assert after > usual / 2
