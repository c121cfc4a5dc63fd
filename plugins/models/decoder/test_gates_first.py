"""Gates before `up` in the fused step, and how its hidden channels are shared out: the bits of the model itself."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from test_fast_decoding import KINDS, follow, network

from fastsnn_kernel_numba import fused_decoder_tables

GATES = {
    "relu": {"activation": "relu"},
    "relu2, biases": {"activation": "relu2", "bias": True},
    "drelu": {"activation": "drelu"},
    "thresholds": {"activation": "silu", "gate_threshold": 0.3},
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cost", [0.0, 1.25, 1e9])
@pytest.mark.parametrize("gate", list(GATES))
def test_gates_first(gate, cost, threads):
    """`up` behind open gates only, always and never and by measured density: the bits of the whole."""
    model = network(attention=KINDS["gla"], feedforward=GATES[gate], d_ff=1100, d_model=40)
    tokens = torch.randint(0, 37, (1, 12))
    stream = follow(model, tokens, threads=threads)  # makes the stepper, which is kept
    stepper = stream.made
    stepper.call[0]["open_cost"] = cost
    stepper.work.ways.fill(0)
    assert follow(model, tokens, threads=threads).made is stepper
    few, all_ = (sum(n[i] for n in stepper.gate_first.values()) for i in range(2))
    assert few + all_ == 2 * 7 * threads  # layers, tokens, blocks of hidden channels
    assert cost == 1.25 or (all_ if cost == 0 else few) == 0


@pytest.mark.parametrize("k", [0.05, 1e3, 1e4])
def test_gates_first_of_few_and_large_counts(k):
    """Counts that 16 bits do not hold take the ordinary way; so does a row whose numbers could overflow."""
    model = network(feedforward={"activation": "relu"}, neuron={"kind": "adaptive_threshold", "k": k}, d_ff=83)
    stream = follow(model, torch.randint(0, 37, (1, 9)))
    stream.made.call[0]["open_cost"] = 0.0
    follow(model, torch.randint(0, 37, (1, 9)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("gate", [*GATES, "silu", "no gate"])
def test_weights_that_no_cache_holds(gate, threads, monkeypatch):
    """Whole rows are shared out then, and hidden channels are a phase of their own: the same bits."""
    monkeypatch.setattr(fused_decoder_tables, "CACHED", 0)
    other = {"silu": {"activation": "silu"}, "no gate": {"gated": False}}
    model = network(attention=KINDS["gla"], feedforward=(GATES | other)[gate], d_ff=1100, d_model=40)
    stream = follow(model, torch.randint(0, 37, (1, 12)), threads=threads)
    assert stream.made.tables.layers[0]["up_task"] >= 0 or not stream.made.gate_first
    if stream.made.gate_first:
        assert sum(sum(n) for n in stream.made.gate_first.values()) > 0


def test_dense_gates_have_no_second_copy():
    model = network()
    assert follow(model, torch.randint(0, 37, (1, 7))).made.gate_first == {}
