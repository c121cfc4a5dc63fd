"""L1 on hidden channels: they fall silent, per layer in the log; a target stops it; what cannot be is refused."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import build, create
from fastsnn_core.errors import FastSNNError
from fastsnn_train import TrainConfig, Trainer
from fastsnn_train.loop.activation_sparsity import ramp, record_activations


def decoder(sites=("attn_in", "attn_out", "ffn_in", "ffn_hidden"), activation="relu"):
    torch.manual_seed(0)
    feedforward = create("feedforward", "pulse", activation=activation)
    return build(create("model", "decoder", vocab_size=31, d_model=32, n_layers=2, n_heads=2, sites=sites,
                        attention=(create("attention", "softmax"),), feedforward=feedforward))  # fmt: skip


def fit(model, steps=30, **settings):
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 31, (4, 17), generator=draw) for _ in range(steps)]
    config = TrainConfig(max_steps=steps, log_every=steps, lr=0.01, **settings)
    return Trainer(model, config, quiet=True).fit(batches).history[-1]


@pytest.mark.parametrize("activation", ["relu", "relu2", "drelu"])
@pytest.mark.parametrize("sites", [("attn_in", "attn_out", "ffn_in", "ffn_hidden"), ()])
def test_l1_makes_hidden_channels_silent(sites, activation):
    """With spikes and without; every layer is in the row."""
    plain, held = fit(decoder(sites, activation)), fit(decoder(sites, activation), l1=20.0, l1_warmup=0.0)
    assert set(held["silent_sites"]) == {f"layers.{i}.feedforward.hidden" for i in range(2)}
    for name, silent in held["silent_sites"].items():
        assert silent > plain["silent_sites"][name] + 0.1
    assert held["silent_bytes"] > plain["silent_bytes"]
    assert "l1_penalty" in held
    assert "l1_penalty" not in plain


def test_sites_that_are_silent_enough_feel_nothing():
    assert fit(decoder(), 1, l1=0.1, l1_warmup=0.0)["l1_penalty"] > 0
    assert fit(decoder(), 1, l1=0.1, l1_warmup=0.0, l1_silent=0.01)["l1_penalty"] == 0


def test_silent_bytes_count_every_matrix_with_the_head():
    model = decoder(sites=("head",)).eval()
    tokens = torch.randint(0, 31, (1, 9))
    with record_activations(model, (), magnitudes=False, reads=True) as seen, torch.no_grad():
        model(tokens)
    assert set(seen.reads) >= {"head", "layers.0.attention.q", "layers.1.feedforward.down"}
    size, silent = seen.reads["head"]
    assert size == model.embed.weight.numel()
    assert 0 < silent < size
    hidden = [s for name, (_, s) in seen.reads.items() if name.endswith("down")]
    assert all(s > 0 for s in hidden)  # exact zeros of ReLU count, spikes or not


def test_what_cannot_be_is_refused():
    with pytest.raises(FastSNNError, match="no such spike site; it has"):
        Trainer(decoder(), TrainConfig(l1=1.0, l1_sites=("hidden",)), quiet=True)
    with pytest.raises(FastSNNError, match="l1"):
        TrainConfig(l1=1.0, compile=True)
    with pytest.raises(FastSNNError, match="needs a gate"):
        create("feedforward", "pulse", activation="drelu", gated=False)


def test_ramp():
    assert [ramp(s, 0.5, 8) for s in (0, 3, 4, 7)] == [0.2, 0.8, 1.0, 1.0]
