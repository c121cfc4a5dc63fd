"""A worker that the system held up for the whole of a step, and comes when all is done, changes nothing.

Workers of the fused step share out its tasks and never wait for one that has not come. One that comes late reads what
later stages have left behind: it must count the phases as the others did, or it does work that is none.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from test_fast_decoding import on_threads
from test_step_many import MODELS, VOCAB, network

from fastsnn_kernel_numba import fused_decoder_compile as compiled
from fastsnn_kernel_numba import fused_decoder_tables

STEPS = 36
OTHER = ("sync", "ways", "folds")  # counters (ways are compared below), and every worker's own memory for sums
GATES = {
    "most gates shut": {"feedforward": {"kind": "pulse", "activation": "silu", "gate_threshold": 9.0}, "d_ff": 1100},
    "some gates shut": {"feedforward": {"kind": "pulse", "activation": "relu2"}, "d_ff": 1100, "d_model": 40},
}


def contents(stepper):
    works = [*stepper.works[:8], *(stepper.batch.works if stepper.batch else ())]
    return [{name: getattr(w, name).tobytes() for name in w._fields if name not in OTHER} for w in works]


@pytest.mark.parametrize(("rows", "cached"), [(1, True), (1, False), (3, True)])
@pytest.mark.parametrize("name", [*MODELS, *GATES])
@torch.inference_mode()
def test_a_late_worker_finds_nothing_to_do(name, rows, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr(fused_decoder_tables, "CACHED", 0)
    model = network(**(MODELS | GATES)[name])
    states = [model(torch.randint(0, VOCAB, (1, 3 + i)), return_state=True)[1] for i in range(rows)]
    with on_threads(2):
        streams = [model.fast(state) for state in states]
        stepper, late = streams[0].made, []
        walk = ctypes.CFUNCTYPE(None, ctypes.c_int64)(stepper.walk)
        assert len(stepper.works) == 3 * 4  # of what stages leave, and the late worker's own rows last

        def one_after_the_other(address, call, wanted):
            walk(call)
            left, ways = contents(stepper), stepper.work.ways.copy()
            walk(call)
            late.append(ways.reshape(-1, 2))
            for was, now in zip(left, contents(stepper), strict=True):
                assert not [field for field in was if was[field] != now[field]]
            assert (stepper.work.ways == ways).all()

        monkeypatch.setattr(compiled, "start_step", one_after_the_other)
        for step in range(STEPS):  # what a weight behind an open gate costs is swept, so that layers decide differently
            stepper.call[0]["open_cost"] = 0.02 * 1.25**step
            assert not any(isinstance(y, Exception) for y in model.step_many(streams, [step] * rows))
        assert len(late) == STEPS
        if name == "some gates shut" and rows == 1:
            assert (late[-1].sum(0) > 0).all()  # both ways were taken


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound to a core here")
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("activation", "cached"), [("relu", True), ("relu", False), ("silu", True)])
@torch.inference_mode()
def test_two_workers_on_a_core_or_two(activation, cached, cores, monkeypatch):
    """On one core, beside a busy neighbour, the system stops each of them wherever it likes, so both come late, and
    early: the bits of one."""
    if not cached:
        monkeypatch.setattr(fused_decoder_tables, "CACHED", 0)
    wide = {"d_model": 384, "n_layers": 6, "n_heads": 6, "d_ff": 1536}
    model, found = network(**wide, feedforward={"kind": "pulse", "activation": activation}), []
    state = model(torch.randint(0, VOCAB, (1, 3)), return_state=True)[1]
    tokens = torch.randint(0, VOCAB, (400,)).tolist()
    for threads in (1, 2):
        with on_threads(threads), subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            stream = model.fast(state, room=len(tokens) + 3)
            stream.step(0)  # its threads are there
            bound = {int(task.name): os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}
            try:
                for task in (*bound, neighbour.pid):
                    os.sched_setaffinity(task, sorted(os.sched_getaffinity(task))[:cores])
                found.append([stream.step(token) for token in tokens])
            finally:
                neighbour.kill()
                for task, all_of in bound.items():
                    os.sched_setaffinity(task, all_of)
    assert not [i for i, (a, b) in enumerate(zip(*found, strict=True)) if not torch.equal(a, b)]


@torch.inference_mode()
def test_the_step_runs_on_numbas_own_threads_where_torch_has_no_such_pool(monkeypatch):
    model = network(**MODELS["gla and window"])
    state, tokens = model(torch.randint(0, VOCAB, (1, 3)), return_state=True)[1], range(20)
    with on_threads(2):
        stream = model.fast(state)
        wanted = [stream.step(token) for token in tokens]
        asked, on = [], compiled._step.on
        monkeypatch.setattr(compiled, "torch_pool", lambda: None)
        monkeypatch.setattr(compiled._step, "on", lambda *args: (asked.append(args[0]), on(*args)))
        stream = model.fast(state)
        assert all(torch.equal(stream.step(token), logits) for token, logits in zip(tokens, wanted, strict=True))
    assert asked == [2] * len(tokens)
