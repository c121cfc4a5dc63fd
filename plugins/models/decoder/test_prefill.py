"""Reading prompts through the row kernels: the bits of the modules themselves, whatever the cut and the company."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from test_fast_decoding import KINDS, REST, network

from fastsnn_core import ops
from fastsnn_core.probe import probe
from fastsnn_core.state import leaves
from fastsnn_integer import fused_row_ops
from fastsnn_integer.quantization import Quant
from fastsnn_model_decoder import prefill


def same(a, b):
    """Two states, bit for bit."""
    a, b = dict(leaves(a)), dict(leaves(b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.inference_mode()
def compare(model, tokens, reset=None, fused=True):
    """Both ways of reading: all logits, the state, and going on from it with the last logits only."""
    assert prefill.prefill_applies(model, tokens) == fused
    logits, state = model(tokens, reset=reset, return_state=True)
    with ops.use("naive"):
        assert not prefill.prefill_applies(model, tokens)
        wanted, after = model(tokens, reset=reset, return_state=True)
    assert torch.equal(logits, wanted)
    assert same(state, after)
    last, state = model(tokens, state, return_state=True, last=True)
    with ops.use("naive"):
        wanted, after = model(tokens, after, return_state=True)
    assert torch.equal(last, wanted[:, -1:])
    assert same(state, after)


@pytest.mark.parametrize("rest", list(REST))
@pytest.mark.parametrize("kind", list(KINDS))
def test_equal_bits(kind, rest):
    model, tokens = network(attention=KINDS[kind], **REST[rest]), torch.randint(0, 37, (3, 20))
    compare(model, tokens, torch.rand(3, 20) < 0.1 if rest == "plain" else None)


def test_batches_and_cuts():
    model, tokens = network(), torch.randint(0, 37, (33, 40))
    with torch.inference_mode():
        whole = model(tokens)
        for n in (1, 8):
            assert torch.equal(model(tokens[:n]), whole[:n])
        pieces, state = [], None
        for piece in tokens[:1].split([35, 1, 4], 1):
            out, state = model(piece, state, return_state=True)
            pieces.append(out)
        assert torch.equal(torch.cat(pieces, 1), whole[:1])


@pytest.mark.parametrize("k", [0.2, 3.0, 200.0])
def test_few_spikes_and_counts_beyond_8_bits(k):
    model = network(neuron={"kind": "adaptive_threshold", "k": k})
    compare(model, torch.randint(0, 37, (2, 30)))


def test_bursts():
    compare(network(neuron={"kind": "adaptive_max", "burst": 3}), torch.randint(0, 37, (2, 30)))


@pytest.mark.parametrize(
    "fields",
    [
        {"quant": Quant(group=8)},
        {"sites": ["q", "ffn_in"]},
        {"sites": ["ffn_in", "head"]},
        {"neuron": {"kind": "lif"}},
        {"neuron": {"kind": "adaptive_threshold", "top": 3}},
        {"at": [{"sites": ["head"], "neuron": {"kind": "lif"}}], "sites": ["attn_in", "attn_out", "ffn_in", "head"]},
        {"quant": Quant(kv=True), "attention": [{"kind": "softmax"}, {"kind": "sliding_window", "window": 7}]},
    ],
)
def test_blocks_that_run_as_they_are(fields):
    compare(network(**fields), torch.randint(0, 37, (2, 20)))


def test_the_event_runtime_keeps_its_trains():
    model = network().runtime("event")
    compare(model, torch.randint(0, 37, (2, 20)))


def test_hooks_gradients_and_short_prompts_go_through_the_modules():
    model, tokens = network(), torch.randint(0, 37, (2, 20))
    assert not prefill.prefill_applies(model, tokens)  # gradients are wanted
    with torch.inference_mode():
        assert not prefill.prefill_applies(model, tokens[:, :4])
        with probe(model):
            assert not prefill.prefill_applies(model, tokens)


def test_what_is_not_finite_is_named():
    model, tokens = network(), torch.randint(0, 37, (2, 20))
    with torch.inference_mode():
        model.layers[1].feedforward_norm.weight[2] = float("nan")
        with pytest.raises(ValueError, match="counts must be finite"):
            model(tokens)


def test_the_path_is_said():
    model, tokens = network(d_model=96, n_heads=4), torch.randint(0, 37, (2, 20))
    with torch.inference_mode():
        model(tokens)
    assert model.layers[0].attention.q.path.startswith("numba")
    assert fused_row_ops.PROJECT.pick("cpu")[0] == "numba"
