"""The conformance kit over this plugin, and how far new weights remember."""

from __future__ import annotations

import math

import pytest
import torch

from fastsnn_attention_gla import Gla, half_lives
from fastsnn_core import Dims, Heads, build, create
from fastsnn_core.testing import conformance

test_gla = conformance("gla")


def left(mixer, dims, tokens):
    """Share of what the first token stored that is there `tokens` later, per head and channel."""
    heads = Heads(*(torch.zeros(1, tokens + 1, n, dims.head_dim) for n in (dims.n_heads, *[dims.n_kv_heads] * 2)),
                  torch.zeros(1, tokens + 1, dims.d_model))  # fmt: skip
    heads.k[:, 0] = 1.0
    heads.v[:, 0] = 1.0
    return mixer(heads)[1].z_acc[0]


@pytest.mark.parametrize("tau", [4.0, 16.0])
def test_new_weights_remember_from_tau_to_reach(tau):
    dims = Dims(12, 4, 2, 6)
    mixer = Gla(tau=tau, reach=512.0).build(dims)
    for channel, life in enumerate(half_lives(6, tau, 512.0)):
        share = left(mixer, dims, round(life))[:, channel]
        torch.testing.assert_close(share, torch.full((2,), 0.5 ** (round(life) / life)), rtol=1e-4, atol=0)


def test_half_lives_rise_evenly_and_none_is_below_tau():
    found = half_lives(5, 16.0, 4096.0)
    assert found == pytest.approx([16, 64, 256, 1024, 4096])
    assert half_lives(3, 16.0, 0.0) == [16.0] * 3
    assert half_lives(1, 16.0, 99.0) == [16.0]
    mixer = Gla(reach=0.0).build(Dims(12, 2, 2, 6))
    assert not mixer.gate_up.bias.any()


def test_a_decoder_leaves_the_gates_as_they_begin():
    kind = create("attention", "gla", reach=256.0)
    model = build(create("model", "decoder", d_model=12, n_heads=2, n_layers=1, attention=(kind,)))
    bias = model.layers[0].attention.mixer.gate_up.bias.view(2, 6)
    new = [
        build(create("model", "decoder", d_model=64, n_heads=2, n_layers=1, attention=(k,)))
        for k in (kind, create("attention", "gla"))
    ]
    spread, plain = (m.layers[0].attention.mixer.gate_up.weight.std() for m in new)
    assert 0.05 < spread / plain < 0.2
    lives = -16 * math.log(2) / torch.nn.functional.logsigmoid(bias)
    torch.testing.assert_close(lives, torch.tensor(half_lives(6, 16.0, 256.0)).expand(2, 6), rtol=1e-4, atol=0)
