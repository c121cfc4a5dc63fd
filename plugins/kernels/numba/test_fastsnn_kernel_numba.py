"""The conformance kit, and how kernels are started: threads, forks, the disk cache, buffer_pool."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import fastsnn_events
from fastsnn_core.testing import conformance
from fastsnn_events import linear
from fastsnn_leaky.scan import lif_scan

test_numba = conformance("numba")

FRESH = """
import os, torch
torch.set_num_threads(1)
from fastsnn_core import ops
from fastsnn_events import linear
from fastsnn_leaky import lif_scan
x = torch.linspace(-3, 3, 7 * 96).view(1, 7, 96)
run = lambda: lif_scan(x, beta=0.5, lo=-2, hi=2)[0]
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
    w = fastsnn_events.input_major(torch.randint(-128, 128, (70, 65), dtype=torch.int8))

    def run(a):
        counts = lif_scan(a, beta=0.5, lo=-2, hi=2)[0]
        return counts, linear.COUNT_LINEAR("cpu", counts[0, :3], w)

    alone = [run(a) for a in x]
    with ThreadPoolExecutor(4) as pool:
        for (a, b), (c, d) in zip(alone * 5, pool.map(run, x * 5), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_a_function_without_a_cacheable_file_compiles_and_says_so(caplog):
    from fastsnn_kernel_numba import numba_runtime

    space = {}
    exec("def twice(a):\n    return a + a", space)
    numba_runtime._warn_no_cache.cache_clear()
    with caplog.at_level(logging.WARNING, "fastsnn"):
        assert numba_runtime.compile(space["twice"])(3) == 6
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_large_outputs_reuse_memory_of_dead_ones_and_never_of_living_ones():
    from fastsnn_kernel_numba import buffer_pool

    buffer_pool.release()
    small, first = buffer_pool.empty((4, 5), torch.float32), buffer_pool.empty((5, 1 << 20), torch.float32)
    assert small.shape == (4, 5)
    assert first.shape == (5, 1 << 20)
    assert first.is_contiguous()
    assert first.data_ptr() % buffer_pool.HUGE == 0
    first.fill_(1.0)
    where, part = first.data_ptr(), first[1:].t()
    del first
    second = buffer_pool.empty((5, 1 << 20), torch.float32)  # `part` still lives on the first buffer
    second.fill_(2.0)
    assert second.data_ptr() != where
    assert float(part.sum()) == part.numel()
    del part
    assert buffer_pool.empty((10, 1 << 18), torch.float64).data_ptr() == where
    buffer_pool.release()
    assert not buffer_pool._free


def test_waiting_memory_is_bounded(monkeypatch):
    from fastsnn_kernel_numba import buffer_pool

    buffer_pool.release()
    monkeypatch.setattr(buffer_pool, "KEEP", 20 << 20)
    held = [buffer_pool.empty((size << 20,), torch.int8) for size in (8, 10, 12)]
    del held
    assert sum(size * len(kept) for size, kept in buffer_pool._free.items()) <= 20 << 20
    buffer_pool.release()
