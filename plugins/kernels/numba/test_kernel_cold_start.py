"""Kernels that were never compiled: another process compiles them, and nobody waits."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

pytest.importorskip("numba")
import torch

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import OPERATORS
from fastsnn_events.linear import COUNT_LINEAR, COUNT_PROJECT, count_linear_naive
from fastsnn_integer.answer_meanwhile import TURN, answer_meanwhile, being_compiled
from fastsnn_kernel_numba import NumbaKernels, cold_start, compile_all, fused_decoder_compile
from fastsnn_kernel_numba.cold_start import ColdStart


@pytest.fixture
def cold(monkeypatch, tmp_path):
    """A process whose cache is empty, and whose second process is the lines in `said`."""
    state = ColdStart()
    monkeypatch.delenv("FASTSNN_COMPILE", raising=False)
    monkeypatch.setattr(cold_start, "COLD", state)
    monkeypatch.setattr(cold_start, "marker_path", lambda: tmp_path / "none")
    for name, kernel in NumbaKernels().operators().items():
        if hasattr(kernel, "ready"):
            monkeypatch.setattr(OPERATORS[name].pick("cpu")[1], "ready", lambda name=name: state.ready(name))
    return state


def test_operators_answer_in_torch_until_their_kernel_is_there(cold, monkeypatch):
    monkeypatch.setattr(ColdStart, "begin", lambda self: None)
    assert being_compiled() == sorted(set(cold_start.ORDER) & set(OPERATORS))
    counts, weight = torch.tensor([[2.0, -1.0]]), torch.tensor([[3, 4], [5, 6]], dtype=torch.int8)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with answer_meanwhile():
        assert COUNT_LINEAR("cpu", counts, weight).tolist() == [[2, 4]]
        assert COUNT_LINEAR.path == "naive"
        assert torch.get_num_threads() == 1  # the other one's core compiles
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    cold.there.update(cold_start.ORDER)
    assert being_compiled() == []
    with answer_meanwhile():
        COUNT_LINEAR("cpu", counts, weight)
        assert COUNT_LINEAR.path.startswith("numba")


def test_products_of_one_row_are_compiled_before_the_others(cold, monkeypatch):
    monkeypatch.setattr(ColdStart, "begin", lambda self: None)
    compile_all.compile_operator(cold_start.ONE_ROW)
    weight = torch.tensor([[3, 4, 0], [5, 6, 1]], dtype=torch.int8)
    by_input, scale, v = weight.T.contiguous().T, torch.tensor([0.5, 2.0]), torch.tensor([[0.25]])
    one, two = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, 200.0]])

    def paths(counts, weights):
        with answer_meanwhile():
            sums, taken = COUNT_LINEAR("cpu", counts, weights), COUNT_LINEAR.path
            numbers = COUNT_PROJECT("cpu", counts, weights, scale, v)
        assert torch.equal(sums, count_linear_naive(counts, weights))
        assert torch.equal(numbers, sums.float() * scale * v)
        return taken

    assert paths(one, by_input) == "naive"
    cold.there.add(cold_start.ONE_ROW)
    assert paths(one, by_input) == "numba: events"
    assert paths(one.long(), by_input) == "numba: events"
    for counts, weights in ((two, by_input), (one, weight), (one, by_input.int()), (one.to(torch.int8), by_input)):
        paths(counts, weights)
    assert paths(two, by_input) == paths(one, weight) == "naive"
    with answer_meanwhile(), pytest.raises(FastSNNError, match="whole numbers"):
        COUNT_LINEAR("cpu", one / 4, by_input)


def second_process(monkeypatch, go, code):
    """Runs `code` in the place of the compiling process as soon as the file `go` is there; what was loaded here, in
    order."""
    loaded, popen = [], subprocess.Popen

    def load(name):
        assert sys.getswitchinterval() == pytest.approx(TURN)  # it gives way to who answers
        loaded.append(name)

    code = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n{code}"
    monkeypatch.setattr(compile_all, "compile_operator", load)
    monkeypatch.setattr(subprocess, "Popen", lambda args, **more: popen([sys.executable, "-c", code], **more))
    return loaded


def test_what_another_process_has_compiled_is_loaded_here(cold, monkeypatch, caplog, tmp_path):
    go = tmp_path / "go"
    loaded = second_process(monkeypatch, go, "print('exact_norm'); print('noise'); print('count_linear')")
    assert not cold.ready("exact_norm")
    go.touch()
    cold.thread.join(30)
    assert loaded == ["exact_norm", "count_linear"]
    assert all(cold.ready(name) for name in cold_start.ORDER)
    assert "in the background" in caplog.text


def test_a_second_process_that_fails_is_said_and_kernels_compile_here(cold, monkeypatch, caplog, tmp_path):
    second_process(monkeypatch, tmp_path / "go", "raise SystemExit(3)")
    assert not cold.ready("exact_norm")
    (tmp_path / "go").touch()
    cold.thread.join(30)
    assert cold.ready("exact_norm")
    assert "ended with 3" in caplog.text


def test_a_complete_cache_starts_nothing(cold, tmp_path):
    (tmp_path / "none").touch()
    assert cold.ready("exact_norm")
    assert cold.thread is None


def test_tests_wait_for_kernels(cold, monkeypatch):
    monkeypatch.setenv("FASTSNN_COMPILE", "wait")
    assert cold.ready("exact_norm")
    assert cold.thread is None


def test_the_fused_step_is_not_looked_for_before_the_second_process_is_done_with_it(cold, monkeypatch):
    """Numba writes its index before the code: a file on disk may be half of it."""
    monkeypatch.setattr(ColdStart, "follow", lambda self: None)
    monkeypatch.setattr(fused_decoder_compile, "COLD", cold)
    looked = []
    uncompiled = SimpleNamespace(signatures=(), _cache=SimpleNamespace(cache_path="here"))
    monkeypatch.setattr(fused_decoder_compile, "step_is_loaded", lambda: False)
    monkeypatch.setattr(fused_decoder_compile, "_step", SimpleNamespace(parallel=uncompiled))
    monkeypatch.setattr(fused_decoder_compile, "names_on_disk", lambda: looked.append(1) or ())
    assert not cold.ready("decode_step")
    assert not fused_decoder_compile.step_is_compiled()
    assert not looked
    cold.there.add("decode_step")
    assert fused_decoder_compile.step_is_compiled()
    assert looked


def test_the_marker_is_of_this_code_and_this_processor(monkeypatch):
    first = cold_start.code_and_machine()
    cold_start.code_and_machine.cache_clear()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    other = cold_start.code_and_machine()
    cold_start.code_and_machine.cache_clear()
    assert first != other


@pytest.mark.slow
def test_a_prompt_and_its_tokens_compile_nothing_that_was_not_compiled_before():
    """Every signature that a decoder's prompts, batches and steps need is among the operators' samples."""
    code = """
    import torch
    from numba.core import event
    from fastsnn_core import Model
    from fastsnn_core.spec import converter
    from fastsnn_integer.quantization import quantise
    from fastsnn_kernel_numba import cold_start, compile_all
    for name in cold_start.ORDER:
        compile_all.compile_operator(name)
    seen = []
    class Listener(event.Listener):
        def on_start(self, e): seen.append((str(e.data["dispatcher"]), str(e.data["args"])))
        def on_end(self, e): pass
    event.register("numba:compile", Listener())
    cold_start.COLD.warm = True
    for kinds in (["gla", "sliding_window"], ["softmax"]):
        table = {"kind": "decoder", "vocab_size": 257, "d_model": 64, "n_layers": 2, "n_heads": 4}
        table["attention"] = [{"kind": kind} for kind in kinds]
        model = quantise(converter().structure(table, Model).build()).eval()
        with torch.inference_mode():
            for rows, tokens in ((1, 40), (1, 24), (1, 3), (4, 24)):
                state = model(torch.ones(rows, tokens, dtype=torch.long), return_state=True, last=True)[1]
                model(torch.ones(rows, 1, dtype=torch.long), state, return_state=True, last=True)
            state = model(torch.ones(1, 9, dtype=torch.long), return_state=True, last=True)[1]
            streams = [model.fast(state) for _ in range(3)]
            streams[0].step(1)
            model.step_many(streams, [1, 2, 3])
            model.read_together([[1] * 12, [2] * 20], [None, None])
    print(seen)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
