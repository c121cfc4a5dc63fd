"""Training that is about spikes: the firing band, the warm-up, the rescue, and gradients watched block by block."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
from fastsnn_core.probe import probe
from fastsnn_core.site import sites
from fastsnn_train import TrainConfig, Trainer
from fastsnn_train.loop import health
from fastsnn_train.loop.firing_rate import band_penalty, blend_at, firing_rate, watch
from fastsnn_train.loop.health import SiteHealth


def fit(model, packed, n=30, **config):
    defaults = {"max_steps": n, "batch_size": 8, "log_every": 5, "lr": 3e-3, "schedule": "constant"}
    return Trainer(model, TrainConfig(**defaults | config), quiet=True).fit(packed)


# -- the firing band ----------------------------------------------------------------------------------------------


def test_penalty_by_hand():
    found = band_penalty({"a": torch.tensor(0.5), "b": torch.tensor(2.0), "c": torch.tensor(5.0)}, 1.0, 3.0)
    assert float(found) == pytest.approx((0.25 + 0.0 + 4.0) / 3)


def test_rate_is_the_mean_magnitude_and_pulls_silent_channels_by_their_sign():
    counts = torch.tensor([[[2.0, -3.0, 0.0, 0.0]]], requires_grad=True)
    x = torch.tensor([[[2.1, -2.9, 0.2, -0.3]]])
    found = firing_rate(x, counts, torch.nn.Identity())
    found.backward()
    assert found.item() == 1.25
    assert counts.grad.flatten().tolist() == [0.25, -0.25, 0.25, -0.25]
    unsigned = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    neuron = torch.nn.Identity()
    neuron.lo = 0.0
    firing_rate(torch.tensor([[[1.5, -0.5]]]), unsigned, neuron).backward()
    assert unsigned.grad.flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_watched_rates_are_those_of_the_trace_and_their_gradient_is_right(make, packed, accumulate, checkpointing):
    """Against the definition: a penalty computed from a plain forward pass, differentiated whole."""
    more = {"rate_weight": 2.0, "rate_low": 3.5, "rate_high": 4.0, "clip": 0.0, "lr": 1.0, "warmup": 0.0}
    neuron = create("neuron", "adaptive_threshold", learn_k=True)
    trainer = Trainer(make(neuron).double(), TrainConfig(**more, accumulate=accumulate, checkpointing=checkpointing))
    grads = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: grads.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
    )
    tokens = packed.batch(0, 8, 0)
    outcome = trainer.train_step(tokens, look=True)
    other = make(neuron).double().train()
    total, means = 0.0, []
    for piece in tokens.chunk(accumulate):
        with watch(other, health=False, rates=True) as seen:
            loss = trainer.stepper.loss.__func__(stepper_of(other, trainer), piece, None)
            means.append(2.0 * band_penalty(seen.rates, 3.5, 4.0))
            ((loss + means[-1]) / accumulate).backward()
        total += float(loss.detach()) / accumulate
    assert outcome.loss == pytest.approx(total, abs=1e-12)
    assert outcome.penalty == pytest.approx(float(sum(means).detach()) / accumulate, abs=1e-12)
    assert outcome.penalty > 0.1
    for name, p in other.named_parameters():
        assert torch.allclose(grads[name], p.grad, atol=1e-12), name


def stepper_of(model, trainer):
    from fastsnn_train.loop.optimizer_step import OptimizerStep

    return OptimizerStep(model, TrainConfig(), trainer.world)


@pytest.mark.parametrize(
    ("neuron", "band"),
    [
        (create("neuron", "lif", threshold=0.8), (0.05, 0.12)),
        (create("neuron", "adaptive_threshold", learn_k=True, k=3.0), (0.5, 1.5)),
    ],
)
def test_training_moves_firing_into_the_band(neuron, band, make, packed):
    low, high = band
    more = {"rate_low": low, "rate_high": high, "n": 90, "lr": 2e-2}
    free = fit(make(neuron), packed, **more)
    held = fit(make(neuron), packed, rate_weight=20.0, **more)
    outside = [
        sum(max(0.0, low - h.mean_count, h.mean_count - high) for h in trainer.last_health.values())
        for trainer in (free, held)
    ]
    assert outside[1] < 0.35 * outside[0]
    assert held.history[-1]["rate_penalty"] < held.history[0]["rate_penalty"]


# -- the warm-up --------------------------------------------------------------------------------------------------


def test_spikes_come_in_over_the_first_share_of_the_steps():
    seen = [blend_at(n, 0.5, 8) for n in range(8)]
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])
    assert blend_at(0, 0.0, 8) == 1.0


def test_sites_blend_while_training_and_only_then(make, packed):
    model, blends = make(), []
    site = next(iter(sites(model).values()))
    site.register_forward_hook(lambda module, args, out: blends.append((model.training, module.blend)))
    fit(model, packed, n=8, spike_warmup=0.5, eval_every=3, log_every=1).evaluate(packed)
    training = [b for t, b in blends if t]
    assert training == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])
    assert {b for t, b in blends if not t} == {1.0}
    assert all(s.blend == 1.0 for s in sites(model).values())


def test_a_stop_in_the_warm_up_leaves_sites_spiking(make, packed):
    def bad():
        yield packed.batch(0, 4, 0)
        raise RuntimeError("the loader broke")

    model = make()
    with pytest.raises(RuntimeError, match="the loader broke"):
        Trainer(model, TrainConfig(max_steps=9, spike_warmup=1.0), quiet=True).fit(bad())
    assert all(s.blend == 1.0 for s in sites(model).values())


# -- the rescue ---------------------------------------------------------------------------------------------------


def silence(model):
    for name, site in sites(model).items():
        if name.startswith("layers.0.feedforward"):
            site.neuron.theta.fill_(1e6)


def test_silent_sites_are_rescued_after_so_many_log_steps_and_it_is_said(make, packed, caplog):
    model = make("lif_sint")
    silence(model)
    trainer = fit(model, packed, n=4, rescue=2, log_every=1)
    said = [r.getMessage() for r in caplog.records if "its threshold was set" in r.getMessage()]
    assert len(said) == 2
    assert all(text.startswith("step 2: layers.0.feedforward.") for text in said)
    assert "was silent or saturated for 2 log steps: its threshold was set from the current batch, 1e+06 → " in said[0]
    assert trainer.last_health["layers.0.feedforward.inner"].silent < 0.999
    with probe(model) as trace:
        model(packed.batch(0, 4, 0))
    assert trace["layers.0.feedforward.hidden"].spikes.sparsity().silent_fraction < 0.999


def test_without_rescue_the_message_says_what_to_do(make, packed, caplog):
    model = make("lif_sint")
    silence(model)
    trainer = fit(model, packed, n=4, log_every=1)
    assert caplog.text.count("layers.0.feedforward.inner is silent") == 1
    assert "rescue = 3 sets it from data" in caplog.text
    assert float(sites(model)["layers.0.feedforward.inner"].neuron.theta) == 1e6
    assert "layers.0.feedforward.inner" in trainer.history[-1]["flags"]


def test_a_saturated_site_is_rescued(make, packed):
    model = make(create("neuron", "ilif"))
    site = sites(model)["layers.1.attention.inner"]
    site.neuron.theta.fill_(1e-6)
    trainer = fit(model, packed, n=3, rescue=2, log_every=1)
    assert float(site.neuron.theta) > 1e-3
    assert trainer.last_health["layers.1.attention.inner"].saturated < 0.5


def test_a_neuron_without_a_threshold_is_left_alone():
    found = {"site": SiteHealth(1.0, 0.0, 0.0)}
    says = health.complaints(found, {"site": torch.nn.Identity()})
    assert "raise its k" in says["site"]


# -- gradients ----------------------------------------------------------------------------------------------------


def test_gradient_norms_by_block_are_those_of_torch(make, packed):
    model = make()
    loss = model(packed.batch(0, 4, 0)[:, :-1]).square().mean()
    loss.backward()
    blocks, norm = health.gradient_norms(model)
    assert set(blocks) == {"embed", "layers.0", "layers.1", "norm"}
    assert norm == pytest.approx(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])), rel=1e-6)
    own = torch.nn.utils.get_total_norm([p.grad for p in model.layers[1].parameters()])
    assert blocks["layers.1"] == pytest.approx(float(own), rel=1e-6)


def test_vanishing_and_exploding_blocks_are_flagged(make, packed, caplog):
    model = make()
    for p in model.layers[0].parameters():
        p.register_hook(lambda g: g * 1e-9)
    trainer = fit(model, packed, n=2, log_every=1)
    assert "the gradient of layers.0 vanishes" in caplog.text
    assert trainer.history[0]["flags"] == ["layers.0"]
    assert set(trainer.history[0]["gradient"]) == {"embed", "layers.0", "layers.1", "norm"}
    says = health.gradient_complaints({"a": 1.0, "b": 2.0, "c": 900.0})
    assert list(says) == ["c"]
    assert "explodes" in says["c"]
