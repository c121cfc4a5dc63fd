"""Prompts read together: the logits and states of each alone, whatever their lengths and wherever they stand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from test_fast_decoding import KINDS, REST, network
from test_prefill import same

from fastsnn_integer.quantization import Quant
from fastsnn_model_decoder import prompt_pack


@torch.inference_mode()
def compare(model, sizes, rounds=2):
    """`rounds` pieces of every stream, together and alone."""
    streams = [[torch.randint(0, 37, (n,)).tolist() for _ in range(rounds)] for n in sizes]
    states, alone = [None] * len(sizes), [None] * len(sizes)
    for i in range(rounds):
        found = model.read_together([s[i] for s in streams], states)
        states = [state for _, state in found]
        for n, (logits, state) in enumerate(found):
            wanted, alone[n] = model(torch.tensor([streams[n][i]]), alone[n], return_state=True, last=True)
            assert torch.equal(logits, wanted)
            assert torch.equal(state.position, alone[n].position)
            assert same(state, alone[n])


@pytest.mark.parametrize("rest", list(REST))
@pytest.mark.parametrize("kind", list(KINDS))
def test_equal_bits(kind, rest):
    model = network(attention=KINDS[kind], **REST[rest])
    compare(model, [9, 4, 9, 1, 20, 9])


@pytest.mark.parametrize("sizes", [[1, 1], [16, 16, 16], [40], [3, 2], [1, 70, 2]])
def test_lengths(sizes):
    compare(network(), sizes, rounds=3)


def test_counts_beyond_8_bits():
    compare(network(neuron={"kind": "adaptive_threshold", "k": 200.0}), [9, 12, 9])


@pytest.mark.parametrize(
    "fields",
    [
        {"neuron": {"kind": "lif"}},
        {"sites": ["embed", "ffn_in"]},
        {"at": [{"sites": ["head"], "neuron": {"kind": "lif"}}], "sites": ["attn_in", "ffn_in", "head"]},
        {"quant": Quant(group=8)},
    ],
)
def test_models_that_cannot_are_read_one_by_one(fields):
    compare(network(**fields), [9, 12, 9])


def test_they_are_rows_of_one_product(monkeypatch):
    """And those that begin with one length are mixed in one call."""
    model, seen, groups = network(attention=KINDS["softmax"]), [], []
    run, mix = prompt_pack.prefill.run_rows, prompt_pack.mix_groups
    monkeypatch.setattr(prompt_pack.prefill, "run_rows", lambda *args: (seen.append(args[2]), run(*args))[1])
    monkeypatch.setattr(prompt_pack, "mix_groups", lambda *args: (groups.append(args[2]), mix(*args))[1])
    compare(model, [9, 4, 9], rounds=1)
    assert seen[: len(model.layers)] == [(1, 22)] * len(model.layers)
    assert [mine for _, mine in groups[0]] == [[0], [1, 2]]


def test_what_is_no_prompt_is_refused():
    model = network()
    with torch.inference_mode():
        for prompts, states, says in (
            ([[1], [2]], [None], "2 prompts"), ([[1], []], [None, None], "a token at least"),
            ([[1] * 9, [37]], [None, None], "37"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=says):
                model.read_together(prompts, states)
