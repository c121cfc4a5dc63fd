"""The disk cache knows every constant; compilations that fail are said; tables are checked; unknown names refused."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsnn_core.lowering import SiteForm, SpikeRule, Unsupported
from fastsnn_integer import deterministic, fused_row_ops, samples
from fastsnn_integer.decode_step import NotYet
from fastsnn_kernel_numba import TABLE, compile_all, layout, numba_runtime
from fastsnn_kernel_numba import fused_decoder_compile as kernel
from fastsnn_kernel_numba.fused_decoder_runtime import NumbaStepper
from fastsnn_kernel_numba.fused_decoder_work import Workspace, WorkspaceAt
from fastsnn_modules.operands import OperandError

STALE = """
import sys, torch
torch.set_num_threads(1)
from fastsnn_integer import deterministic
if sys.argv[1] == "changed":
    deterministic.ROOM = (-1.0, 1.0)  # as if another version of the library had other constants
x = torch.tensor([5.0])
from fastsnn_kernel_numba import deterministic as compiled
clamped = x.clamp(*deterministic.ROOM)
print(float(deterministic.unary_naive(x, "exp")), float(compiled.unary(x, "exp")))
"""


def test_code_on_disk_is_not_used_with_other_constants(tmp_path):
    import os

    found = {}
    for how in ("ordinary", "changed", "ordinary"):
        run = [sys.executable, "-c", STALE, how]
        env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(run, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        naive, compiled = (float(n) for n in done.stdout.split())
        assert naive == compiled, f"{how}: naive {naive}, compiled {compiled}"
        found[how] = naive
    assert found["ordinary"] == pytest.approx(148.413, abs=1e-2)
    assert found["changed"] == pytest.approx(2.71828, abs=1e-4)


def test_the_digest_follows_constants_callees_and_code():
    space = {"np": np, "LIMIT": 3}
    exec("def inner(x):\n    return x + LIMIT\ndef outer(x):\n    return inner(x) * 2", space)
    before = numba_runtime.code_digest(space["outer"])
    for change in ("LIMIT = 4", "LIMIT = np.float32(3)", "def inner(x):\n    return x - LIMIT"):
        other = {"np": np, "LIMIT": 3}
        exec("def inner(x):\n    return x + LIMIT\ndef outer(x):\n    return inner(x) * 2", other)
        exec(change, other)
        assert numba_runtime.code_digest(other["outer"]) != before, change
    again = {"np": np, "LIMIT": 3}
    exec("def inner(x):\n    return x + LIMIT\ndef outer(x):\n    return inner(x) * 2", again)
    assert numba_runtime.code_digest(again["outer"]) == before


@pytest.fixture
def uncompiled(monkeypatch):
    """As in a process that has never compiled the step, on a machine that has not either."""
    monkeypatch.setattr(kernel, "names_on_disk", lambda: ("nowhere",))
    monkeypatch.setattr(kernel, "step_is_loaded", lambda: False)
    monkeypatch.setattr(kernel, "_making", [])
    monkeypatch.setattr(kernel, "_failed", [])

    class Never:
        signatures = ()
        _cache = type("Cache", (), {"cache_path": "nowhere"})()

    monkeypatch.setattr(kernel, "_step", type("Step", (), {"parallel": Never()})())
    (plan, *_), *_rest = samples.decode_step()
    return plan


def test_a_compilation_that_fails_is_said_and_tried_again(uncompiled, monkeypatch, caplog):
    tries = []

    def full():
        tries.append(1)
        raise OSError("No space left on device")

    monkeypatch.setattr(kernel, "make", full)
    with pytest.raises(NotYet, match="being compiled"):
        NumbaStepper(uncompiled, wait=False)
    assert not kernel.step_is_compiled()  # asked again: begins in the background
    kernel._making[-1].join()
    for _ in range(3):
        with pytest.raises(Unsupported, match="compiling failed: OSError: No space left on device"):
            NumbaStepper(uncompiled, wait=False)
    assert len(tries) == 1
    assert "No space left on device" in caplog.text
    monkeypatch.setattr(kernel, "RETRY", 0.0)
    assert not kernel.step_is_compiled()
    kernel._making[-1].join()
    assert len(tries) == 2
    monkeypatch.setattr(kernel, "make", lambda: None)
    assert not kernel.step_is_compiled()
    kernel._making[-1].join()
    assert kernel.compile_error() == ""


def test_one_thread_compiles_at_a_time(uncompiled, monkeypatch):
    gate, begun = threading.Event(), []
    monkeypatch.setattr(kernel, "make", lambda: (begun.append(1), gate.wait(10)))
    for _ in range(5):
        assert not kernel.step_is_compiled()
        time.sleep(0.01)
    assert len(begun) == 1
    gate.set()
    kernel._making[-1].join()


def test_a_compiler_that_fails_at_once_is_no_crash(monkeypatch):
    (plan, *_), *_rest = samples.decode_step()

    def broken():
        raise RuntimeError("no linker")

    monkeypatch.setattr(kernel, "walk_address", broken)
    with pytest.raises(Unsupported, match="compiling failed: RuntimeError: no linker"):
        NumbaStepper(plan)


def test_an_activation_without_compiled_code_is_never_another_one(monkeypatch):
    import attrs

    monkeypatch.setitem(deterministic.FORMS, "tanh_shrink", lambda x: x - torch.tanh(x))
    x = samples.normal(1, 3, 24)
    assert torch.equal(deterministic.unary(x, "tanh_shrink"), x - torch.tanh(x))
    up, site = samples.sample_sums(1, 6, 41, True), SiteForm(SpikeRule("mean_abs", divisor=3.0))
    found = fused_row_ops.hidden(up, None, "tanh_shrink", site)
    wanted = fused_row_ops.hidden_naive(up, None, "tanh_shrink", site)
    assert torch.equal(found.counts, wanted.counts)
    (plan, *_), *_rest = samples.decode_step()
    block = plan.blocks[0]
    other = attrs.evolve(block, feedforward=attrs.evolve(block.feedforward, activation="tanh_shrink"))
    with pytest.raises(Unsupported, match=r"layers\.0\.feedforward: the activation 'tanh_shrink' has no compiled form"):
        NumbaStepper(attrs.evolve(plan, blocks=(other,)))
    rule = SpikeRule("median", divisor=3.0)
    strange = attrs.evolve(block, attention=attrs.evolve(block.attention, inner=SiteForm(rule)))
    with pytest.raises(OperandError, match=r"layers\.0\.attention\.inner: statistic = 'median'"):
        NumbaStepper(attrs.evolve(plan, blocks=(strange,)))


def test_rows_must_have_the_fields_of_their_table():
    row = dict.fromkeys(layout.TASK.names, 1)
    assert layout.pack(layout.TASK, [row, row])["columns"].tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"missing \['part'\], unknown \['parts'\]"):
        layout.pack(layout.TASK, [{("parts" if k == "part" else k): v for k, v in row.items()}])
    with pytest.raises(TypeError, match=r"column is 1\.5, no whole number"):
        layout.pack(layout.TASK, [row | {"column": 1.5}])
    into = layout.packer(layout.GEMV)
    with pytest.raises(TypeError, match="wanted counts, kind"):
        into(np.zeros(99, np.int64), 0, counts=1)
    assert set(Workspace._fields) == set(layout.ARRAYS)


def test_compiled_files_know_where_the_named_tuples_of_their_arguments_are(monkeypatch):
    """One that moved to another module made Numba's files unreadable: the fused step never came again."""
    from fastsnn_kernel_numba import fused_decoder_compile, numba_runtime

    module, known = WorkspaceAt.__module__.rpartition(".")[2], numba_runtime.argument_types().split()
    assert f"{module}.Workspace" in known
    text = (Path(numba_runtime.__file__).parent / f"{module}.py").read_bytes()  # which attributes an address has
    assert f"{module}.WorkspaceAt{hashlib.sha256(text).hexdigest()[:12]}" in known
    monkeypatch.setattr(numba_runtime, "_digests", {})
    before = numba_runtime.code_digest(fused_decoder_compile._walk)
    monkeypatch.setattr(numba_runtime, "_digests", {})
    monkeypatch.setattr(numba_runtime, "argument_types", lambda: "elsewhere.Workspace")
    assert numba_runtime.code_digest(fused_decoder_compile._walk) != before


def test_memory_whose_lease_was_interrupted_says_nothing(monkeypatch):
    from fastsnn_kernel_numba import buffer_pool

    said = []
    monkeypatch.setattr("sys.unraisablehook", said.append)
    half = buffer_pool._Lease.__new__(buffer_pool._Lease)  # Ctrl-C before the first line of __init__
    del half
    assert not said


WITHOUT_MEMORY = {"_unary", "_forward", "_membrane", "_scale", "_add_left", "_pool", "_spread"}
"""Kernels whose arrays are the same for any number of workers."""


@pytest.mark.parametrize("operator", [name for name in TABLE if name != "decode_step"])
def test_kernels_start_with_the_workers_their_memory_was_made_for(operator, monkeypatch):
    """torch's number of threads may change in between, and a worker too many would write behind its memory."""
    for path in Path(numba_runtime.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"fastsnn_kernel_numba.{path.stem}")
        if hasattr(module, "workers") and module is not numba_runtime:
            monkeypatch.setattr(module, "workers", lambda: 3)
    started = list[tuple[str, int]]()

    def on(self, wanted, *args):
        started.append((self.function.__name__, wanted))
        return kept(self, wanted, *args)

    kept = numba_runtime.Threaded.on
    monkeypatch.setattr(numba_runtime.Threaded, "on", on)
    monkeypatch.setattr(numba_runtime, "workers", lambda: 1)
    compile_all.compile_operator(operator)
    assert {name for name, wanted in started if wanted != 3} <= WITHOUT_MEMORY
