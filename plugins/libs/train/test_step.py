"""One step: pieces equal the whole batch, precisions, recomputation, averages, and a stop that changes nothing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fastsnn_core import create
from fastsnn_train import TrainConfig, Trainer, TrainingError
from fastsnn_train.loop.optim import learning_rate


def steps(model, packed, n=3, **config):
    trainer = Trainer(model, TrainConfig(**{"max_steps": n, "batch_size": 8, "log_every": 1} | config), quiet=True)
    return trainer.fit(packed)


def worst(a, b):
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("pieces", [2, 4, 3])
def test_accumulated_pieces_equal_one_batch(pieces, make, packed):
    """In float64, where rounding never reaches a spike's edge; 3 pieces of 8 rows are uneven."""
    more = {"rate_weight": 0.0}
    one = steps(make().double(), packed, **more)
    cut = steps(make().double(), packed, accumulate=pieces, **more)
    assert worst(one.model, cut.model) < 1e-12
    assert [abs(a["loss"] - b["loss"]) < 1e-12 for a, b in zip(one.history, cut.history)] == [True] * 3


def test_recomputed_blocks_give_the_same_bits(make, packed):
    more = {"rate_weight": 0.1, "rate_high": 2.0, "accumulate": 2}
    kept = steps(make(), packed, **more)
    again = steps(make(), packed, checkpointing=True, **more)
    assert again.model.checkpointing
    assert worst(kept.model, again.model) == 0.0
    assert again.history[-1]["mean_count"] == kept.history[-1]["mean_count"]


def test_a_model_that_cannot_recompute_is_refused():
    with pytest.raises(ValueError, match="no activation checkpointing"):
        Trainer(torch.nn.Linear(2, 2), TrainConfig(checkpointing=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_and_keeps_float32_weights(precision, make, packed, caplog):
    full, low = steps(make(), packed, 12), steps(make(), packed, 12, precision=precision)
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert abs(low.history[-1]["loss"] - full.history[-1]["loss"]) < 0.1
    assert low.history[-1]["loss"] != full.history[-1]["loss"]
    assert ("without loss scaling" in caplog.text) == (precision == "fp16")


def test_the_average_follows_its_formula_is_evaluated_and_bundled(make, packed):
    model = make()
    trainer = Trainer(model, TrainConfig(max_steps=4, batch_size=4, ema=0.9, bundle="ema"), quiet=True)
    weights, average = [], [p.detach().clone() for p in model.parameters()]
    for n in range(4):
        trainer.train_step(packed.batch(n, 4, 0))
        weights = [p.detach().clone() for p in model.parameters()]
        decay = min(0.9, (2 + n) / (11 + n))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights)]
    row = trainer.judge(packed)
    assert row["held_out"] != row["held_out_ema"]
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights))
    trainer.finish(None)
    assert all(torch.allclose(p, a, atol=1e-7) for p, a in zip(model.parameters(), average))


def test_groups_decay_matrices_only_and_neurons_have_their_own_rate(make):
    neuron = create("neuron", "adaptive_threshold", learn_k=True)
    trainer = Trainer(make(neuron), TrainConfig(neuron_lr=0.25, lr=1.0, warmup=0.0, schedule="constant", max_steps=2))
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    groups = [
        (g["weight_decay"], g["share"], [names[id(p)] for p in g["params"]]) for g in trainer.optimizer.param_groups
    ]
    by = {share: members for _, share, members in groups if share != 1.0}
    assert by.keys() == {0.25}
    assert all(n.endswith("neuron.k") for n in by[0.25])
    assert len(by[0.25]) == 8
    assert all(
        (decay > 0) == (min(trainer.model.get_parameter(n).ndim for n in members) >= 2) for decay, _, members in groups
    )
    trainer.train_step(torch.arange(2 * 13).reshape(2, 13))
    assert {g["lr"] for g in trainer.optimizer.param_groups} == {1.0, 0.25}


def test_a_learnt_threshold_stays_positive(make, packed):
    neuron = create("neuron", "adaptive_threshold", learn_k=True, k=0.5)
    trainer = steps(make(neuron), packed, 8, lr=0.5, warmup=0.0, rate_weight=10.0, rate_high=0.001)
    ks = [p for n, p in trainer.model.named_parameters() if n.endswith("neuron.k")]
    assert all(k.item() > 0 for k in ks)
    assert min(k.item() for k in ks) < 0.05  # halved again and again, where a step of 0.5 would have crossed zero


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_by_hand(schedule):
    config = TrainConfig(max_steps=100, lr=1.0, warmup=0.1, final=0.1, schedule=schedule)
    rates = [learning_rate(n, config) for n in range(100)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    if schedule == "wsd":
        assert rates[80] == 1.0
        assert rates[90] == pytest.approx(0.1 + 0.9 * (99 - 90) / (99 - 10 - 0.8 * 89), abs=0.01)


@pytest.mark.parametrize(("width", "rate"), [(64, 3e-3), (256, 3e-3), (512, 1.5e-3), (1024, 7.5e-4)])
def test_the_default_rate_falls_with_the_width_beyond_256(width, rate):
    model = torch.nn.Linear(2, 2)
    model.spec = create("model", "decoder", d_model=width, n_heads=4)
    trainer = Trainer(model, TrainConfig(), quiet=True)
    assert trainer.config.lr == pytest.approx(rate)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {trainer.config.lr}
    assert Trainer(model, TrainConfig(lr=0.5), quiet=True).config.lr == 0.5  # what is said stands


def poison(model, name):
    """Make one layer's output infinite."""
    model.get_submodule(name).register_forward_hook(lambda module, args, out: out * float("inf"))


def test_a_loss_that_is_no_number_names_step_layer_and_batch_and_leaves_the_weights(make, packed, tmp_path):
    model = make()
    trainer = Trainer(model, TrainConfig(max_steps=5, batch_size=4, log_every=1), out=tmp_path, quiet=True)
    trainer.train_step(packed.batch(0, 4, 0))
    before = [p.detach().clone() for p in model.parameters()]
    moments = {id(p): {k: v.clone() for k, v in s.items()} for p, s in trainer.optimizer.state.items()}
    poison(model, "layers.1.feedforward.up")
    with pytest.raises(TrainingError, match=r"step 1: .*first bad output is that of layers\.1\.feedforward\.up; "):
        trainer.fit(packed)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(s[k], moments[id(p)][k]) for p, s in trainer.optimizer.state.items() for k in s)
    saved = load_file(tmp_path / "bad-batch-step-1.safetensors")
    assert torch.equal(saved["tokens"], packed.batch(1, 4, 0))


def test_a_gradient_that_is_no_number_names_its_parameter(make, packed):
    model = make()
    model.layers[0].attention.q.weight.register_hook(lambda g: g * float("nan"))
    trainer = Trainer(model, TrainConfig(max_steps=5, clip=0.0), quiet=True)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError, match=r"gradient of layers\.0\.attention\.q\.weight is not"):
        trainer.fit(packed)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))


def test_clipping_bounds_the_norm(make, packed):
    model = make()
    trainer = Trainer(model, TrainConfig(max_steps=2, clip=0.01, lr=1.0, warmup=0.0), quiet=True)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    )
    outcome = trainer.train_step(packed.batch(0, 4, 0))
    assert outcome.norm > 0.01
    assert float(seen[0]) == pytest.approx(0.01, rel=1e-3)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="firing band is empty"):
        TrainConfig(rate_low=3.0, rate_high=2.0)
    with pytest.raises(ValueError, match="set ema"):
        TrainConfig(bundle="ema")
    with pytest.raises(ValueError, match="compile works on one process"):
        TrainConfig(compile=True, parallel="ddp")


def test_a_failing_compiler_is_said_and_training_goes_on(make, packed, caplog, monkeypatch):
    def broken(model, **_):
        def call(*args, **kwargs):
            raise RuntimeError("no compiler here\nat all")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    plain, compiled = steps(make(), packed, log_every=10), steps(make(), packed, log_every=10, compile=True)
    assert worst(plain.model, compiled.model) == 0.0
    assert "torch.compile failed, going on without it: no compiler here" in caplog.text


@pytest.mark.slow
def test_a_compiled_model_trains_the_same(make, packed):
    plain, compiled = (
        steps(make().double(), packed, log_every=10),
        steps(make().double(), packed, log_every=10, compile=True),
    )
    assert compiled.stepper.compiled is not None
    assert worst(plain.model, compiled.model) < 1e-9
