"""A fused step that another process compiles: the model answers meanwhile, and a thread makes the step."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from fastsnn_core import Model
from fastsnn_core.spec import converter
from fastsnn_integer.answer_meanwhile import TURN
from fastsnn_integer.quantization import quantise
from fastsnn_integer.reference import DECODE_STEP
from fastsnn_kernel_numba import fused_decoder_compile
from fastsnn_model_decoder import fused_decode, fused_ready
from fastsnn_text import generate
from fastsnn_text.take_over import TakeOver

TABLE = {"kind": "decoder", "vocab_size": 37, "d_model": 24, "n_layers": 2, "n_heads": 4}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """A thread does not wait for the step's code, so whether it makes a step would hang on what the cache holds."""
    fused_decoder_compile.make()


@pytest.fixture
def there(monkeypatch):
    """Whether the step is compiled; asking for it is counted."""
    said = {"is": False, "asked": 0}

    def ready():
        said["asked"] += 1
        return said["is"]

    monkeypatch.setattr(DECODE_STEP.pick("cpu")[1], "ready", ready)
    monkeypatch.setattr(fused_ready, "PAUSE", 0.0)
    return said


def network():
    torch.manual_seed(0)
    return quantise(converter().structure(TABLE, Model).build()).eval()


def finished():
    """Wait for threads that make steps."""
    for thread in threading.enumerate():
        if isinstance(thread, fused_ready.Making):
            thread.join(60)


@pytest.fixture
def go(monkeypatch):
    """Threads wait for it before they make a step: a small one is there before anybody asks again."""
    found, made = threading.Event(), fused_ready.make_ready

    def make_ready(*args, **more):
        found.interval = sys.getswitchinterval()
        return found.wait(60) and made(*args, **more)

    monkeypatch.setattr(fused_ready, "make_ready", make_ready)
    return found


def test_the_model_answers_until_a_thread_has_made_the_step(there, go):
    model = network()
    state = model(torch.tensor([[1, 2]]), return_state=True)[1]
    assert model.fast(state, wait=False) is None
    assert "another process compiles" in model.fast_step["why"]
    assert model.fused is None
    there["is"] = True
    assert model.fast(state, wait=False) is None
    assert "is being made" in model.fast_step["why"]
    with torch.inference_mode():
        logits = model(torch.tensor([[3]]), state, return_state=True, last=True)[0][0, -1]
    assert model.fused is None
    go.set()
    finished()
    assert go.interval == pytest.approx(TURN)  # it gives way to who answers
    with torch.inference_mode():  # as generation does: the thread was not in it
        kept = model.fused.made
        stream = model.fast(state, wait=False)
        assert stream.made is kept  # not made again
        assert torch.equal(stream.step(3), logits)


def test_the_step_is_of_as_many_workers_as_it_was_asked_with(there, monkeypatch):
    """While the model answers, torch has one thread less: threads that have not asked yet would take that number."""
    model, begun, go = network(), threading.Event(), threading.Event()
    contiguous = fused_ready.make_contiguous
    monkeypatch.setattr(
        fused_ready, "make_contiguous", lambda *a: begun.set() or (go.wait(60) and contiguous(*a)) or None
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        making = fused_ready.Making(model)
        making.start()
        assert begun.wait(60)
        torch.set_num_threads(2)
        go.set()
        making.join(60)
    finally:
        torch.set_num_threads(before)
    assert model.fused.key[1] == 3


def test_who_waits_has_it_at_once(there):
    model = network()
    assert model.fast(None) is not None
    assert there["asked"] == 0
    assert model.fast(None, wait=False) is not None


def test_a_thread_that_could_not_leaves_it_to_who_asks(there, monkeypatch):
    model, go = network(), threading.Event()
    assert model.fast(None, wait=False) is None
    there["is"] = True
    made = fused_ready.make_ready
    monkeypatch.setattr(fused_ready, "make_ready", lambda *a, **k: go.wait(60) and 1 / 0)
    assert model.fast(None, wait=False) is None
    go.set()
    finished()
    assert model.fused is None
    monkeypatch.setattr(fused_ready, "make_ready", made)
    assert model.fast(None, wait=False) is not None


def test_nothing_is_compiled_for_float_weights(there):
    model = converter().structure(TABLE, Model).build().eval()
    assert model.fast(None, wait=False) is None
    assert there["asked"] == 0
    assert "float weights" in model.fast_step["why"]


def test_weights_that_changed_meanwhile_are_those_of_the_step(there, go):
    model = network()
    state = model(torch.tensor([[1, 2]]), return_state=True)[1]
    assert model.fast(state, wait=False) is None
    there["is"] = True
    assert model.fast(state, wait=False) is None
    go.set()
    finished()
    with torch.no_grad():
        model.layers[0].attention.q.weight.neg_()
    logits = model(torch.tensor([[3]]), state, return_state=True, last=True)[0][0, -1]
    assert torch.equal(model.fast(state, wait=False).step(3), logits)


def test_a_long_stream_moves_into_the_step_beside_its_own_tokens(there, monkeypatch):
    monkeypatch.setattr(generate, "LONG", 8)
    monkeypatch.setattr(generate, "AGAIN", 2)
    model, greedy = network(), generate.Sampling(temperature=0.0)
    wanted = list(generate.generate_ids(network(), [1, 2, 3], 40, greedy))
    assert model.fast(None, wait=False) is None
    threads, moved = [], fused_decode.FastStream.__init__
    monkeypatch.setattr(
        fused_decode.FastStream,
        "__init__",
        lambda *a: threads.append((threading.current_thread(), sys.getswitchinterval())) or moved(*a),
    )
    found = generate.generate_ids(model, [1, 2, 3], 40, greedy)
    tokens = [next(found) for _ in range(8)]
    there["is"] = True
    tokens += [next(found) for _ in range(4)]
    finished()
    tokens += found
    assert tokens == wanted
    assert isinstance(threads[-1][0], TakeOver)
    assert threads[-1][1] == pytest.approx(TURN)
    assert model.fast_step["kernel"] == "numba"
