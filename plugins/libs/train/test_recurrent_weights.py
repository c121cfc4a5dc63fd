"""Recurrent weights of a neuron: their own rate, decay as matrices have it, and what is said when they explode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsnn_core import create
from fastsnn_model_sequential import Layer, Sequential
from fastsnn_train import TrainConfig, Trainer, sample_data
from fastsnn_train.config import section_table
from fastsnn_train.loop import health
from fastsnn_train.loop.resume import changed_settings


def network(scale: float = 0.5, kind: str = "triangle", **how: object) -> torch.nn.Module:
    """One hidden layer of recurrent neurons on three channels."""
    torch.manual_seed(0)
    surrogate = create("surrogate", kind)
    cell = create("neuron", "recurrent_lif", tau=5.0, scale=scale, surrogate=surrogate, **how)
    hidden = Layer(op="linear", size=48), Layer(op="spikes", neuron=cell)
    return Sequential(input=(3,), layers=(*hidden, Layer(op="linear", size=2))).build()


def fitted(model: torch.nn.Module, config: TrainConfig) -> Trainer:
    """After training on noise of 100 steps."""
    x, y = np.random.default_rng(0).normal(size=(64, 100, 3)).astype("float32"), np.arange(64) % 2
    trainer = Trainer(model, config, quiet=True)
    trainer.fit(sample_data(model, (x, y), quiet=True))
    return trainer


def test_recurrent_weights_have_their_own_rate_and_decay_as_matrices():
    model = network(convention="snntorch")  # its R has a bias
    config = TrainConfig(
        max_steps=1, batch_size=16, warmup=0.0, lr=0.5, schedule="constant", recurrent_lr=0.2, neuron_lr=0.4
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = fitted(model, config)
    shares = {id(p): (g["share"], g["weight_decay"]) for g in trainer.optimizer.param_groups for p in g["params"]}
    found = {name: shares[id(p)] for name, p in model.named_parameters()}
    assert found == {
        "layers.0.weight": (1.0, 0.1), "layers.0.bias": (1.0, 0.0), "layers.1.neuron.recurrent.weight": (0.2, 0.1),
        "layers.1.neuron.recurrent.bias": (0.4, 0.0), "layers.2.weight": (1.0, 0.1), "layers.2.bias": (1.0, 0.0),
    }  # fmt: skip
    name = "layers.1.neuron.recurrent.weight"  # a first step of Adam is the rate itself
    moved = (model.get_parameter(name).detach() - before[name] * (1 - 0.5 * 0.2 * 0.1)).abs()
    assert float(moved.max()) == pytest.approx(0.5 * 0.2, rel=1e-3)


@pytest.mark.parametrize(("scale", "kind", "explodes"), [(6.0, "atan", True), (0.5, "triangle", False)])
def test_gradients_that_explode_through_time_name_the_recurrent_weights(scale, kind, explodes, caplog):
    trainer = fitted(network(scale, kind), TrainConfig(max_steps=2, batch_size=16, log_every=1))
    text = "explodes on its way back in time through the recurrent weights of layers.1"
    assert (text in caplog.text) == explodes
    assert "vanishes" not in caplog.text
    row = trainer.history[0]
    assert row.get("flags", []) == (["layers.1"] if explodes else [])
    assert (row["gradient"]["layers.1"] > 100) == explodes


def test_the_norm_that_is_said_is_that_of_the_matrix_in_thresholds():
    model = network()
    cell = model.get_submodule("layers.1.neuron")
    cell.theta.fill_(0.25)
    wanted = float(torch.linalg.matrix_norm(cell.recurrent.weight.detach(), 2)) / 0.25
    assert health.recurrent_norms(model) == pytest.approx({"layers.1": wanted})
    says = health.gradient_complaints({"layers.0": 3e5, "layers.1": 8e5, "layers.2": 0.3}, model)
    assert list(says) == ["layers.1"]
    assert f"spectral norm is {wanted:.2f} thresholds" in says["layers.1"]
    assert "recurrent_lr" in says["layers.1"]
    assert health.gradient_complaints({"layers.0": 30.0, "layers.1": 80.0, "layers.2": 20.0}, model) == {}
    says = health.gradient_complaints({"layers.0": 3e5, "layers.1": 1.0, "layers.2": 0.3}, model)
    assert "on its way back in time" not in "".join(says.values())  # R itself has no such gradient


def test_a_checkpoint_from_before_the_setting_says_that_it_changed():
    then = section_table(TrainConfig(recurrent_lr=1.0))
    assert changed_settings(then, TrainConfig(recurrent_lr=1.0)) == []
    del then["recurrent_lr"]
    assert changed_settings(then, TrainConfig()) == ["recurrent_lr"]
    assert changed_settings(then, TrainConfig(recurrent_lr=1.0)) == []
