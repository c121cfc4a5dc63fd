"""The conformance kit, and how kernels are started: threads, forks, the disk cache, memory."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from fastsnn_core import ops
from fastsnn_core.ops import event
from fastsnn_core.testing import conformance

test_numba = conformance("numba")

FRESH = """
import os, torch
torch.set_num_threads(1)
from fastsnn_core import ops
from fastsnn_core.ops import event
x = torch.linspace(-3, 3, 7 * 96).view(1, 7, 96)
run = lambda: ops.lif_scan(x, beta=0.5, lo=-2, hi=2)[0]
with ops.use("naive"):
    right = run()
assert torch.equal(run(), right) and ops.paths()["lif_scan"] == "numba"
assert torch.get_num_threads() == 1, "numba changed torch's number of threads"
torch.set_num_threads(2)
assert torch.equal(run(), right)
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0 if torch.equal(run(), right) else 1)
"""


def test_torch_keeps_its_threads_and_forked_children_can_run():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_calls_from_several_threads():
    x = [torch.randn(2, 40, 65, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    w = ops.input_major(torch.randint(-128, 128, (70, 65), dtype=torch.int8))

    def run(a):
        counts = ops.lif_scan(a, beta=0.5, lo=-2, hi=2)[0]
        return counts, event.COUNT_LINEAR("cpu", counts[0, :3], w)

    alone = [run(a) for a in x]
    with ThreadPoolExecutor(4) as pool:
        for (a, b), (c, d) in zip(alone * 5, pool.map(run, x * 5), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_a_function_without_a_cacheable_file_compiles_and_says_so(caplog):
    from fastsnn_kernel_numba import launch

    space = {}
    exec("def twice(a):\n    return a + a", space)
    launch._warn_no_cache.cache_clear()
    with caplog.at_level(logging.WARNING, "fastsnn"):
        assert launch.compile(space["twice"])(3) == 6
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_large_outputs_start_on_a_huge_page():
    from fastsnn_kernel_numba import launch

    small, large = launch.empty((4, 5), torch.float32), launch.empty((5, 1 << 20), torch.float32)
    assert small.shape == (4, 5)
    assert large.shape == (5, 1 << 20)
    assert large.is_contiguous()
    assert sys.platform != "linux" or large.data_ptr() % launch.HUGE == 0
    large.fill_(1.0)
    assert float(large.sum()) == large.numel()
