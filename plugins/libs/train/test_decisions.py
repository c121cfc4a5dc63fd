"""When a network over time has decided: by hand, and step by step as it streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsnn_core import create
from fastsnn_core.errors import FastSNNError
from fastsnn_model_sequential import Layer, Sequential
from fastsnn_train import decisions, early_exit, sample_data
from fastsnn_train.samples.decisions import decided

LIF = create("neuron", "lif")


ONCE = (Layer(op="linear", size=9), Layer(op="spikes", neuron=LIF))
"""Layers in front of time: their spikes are made once."""


def network(*last, first=()):
    torch.manual_seed(0)
    spikes = Layer(op="spikes", neuron=LIF)
    layers = (*first, Layer(op="linear", size=16), Layer(op="repeat", steps=7), spikes)
    layers += (Layer(op="linear", size=12), spikes, Layer(op="linear", size=3), *last)
    model = Sequential(input=(6,), layers=layers).build().eval()
    with torch.no_grad():
        model.layers[len(first) + 5].weight.mul_(5)  # some samples are confident early, and some are not
    return model


def blobs(n=60):
    y = np.arange(n) % 3
    return (np.random.default_rng(0).normal(size=(n, 6)) + 1.5 * np.eye(3, 6)[y]).astype(np.float32), y


def by_hand(model, x, y, confidence):
    """Accuracy, mean steps and spikes of leaving at a confidence, one sample after the other."""
    rows = []
    counted = [m for m in model.layers if hasattr(m, "neuron")]
    once = len(counted) - 2
    for sample, label in zip(torch.from_numpy(x), y):
        seen = []
        handles = [m.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out.counts)) for m in counted]
        out = model(sample[None])
        for handle in handles:
            handle.remove()
        for t in range(7):
            sure, said = out[0, : t + 1].mean(0).softmax(0).max(0)
            if sure >= confidence or t == 6:
                spikes = sum(c.abs().sum() for c in seen[:once])
                spikes += sum(c.reshape(7, -1)[: t + 1].abs().sum() for c in seen[once:])
                rows.append((float(said == label), t + 1, float(spikes)))
                break
    return np.mean(rows, 0)


@torch.no_grad()
@pytest.mark.parametrize("first", [(), ONCE])
def test_leaving_early_is_its_definition(first):
    model, (x, y) = network(first=first), blobs()
    data = sample_data(model, (x, y), holdout=0.0, quiet=True)
    found = decisions(model, data.train, data.task, confidences=(0.4, 2.0), batch=25, quiet=True)
    for row in found["exits"]:
        got = [row["accuracy"], row["mean_steps"], row["spikes"]]
        np.testing.assert_allclose(got, by_hand(model, x, y, row["confidence"]), rtol=1e-6)
    assert 1 < found["exits"][0]["mean_steps"] < 7  # some leave and some stay
    assert found["curve"][-1]["accuracy"] == found["exits"][-1]["accuracy"]
    assert found["exits"][-1]["mean_steps"] == 7
    spikes = [row["spikes"] for row in found["curve"]]
    assert spikes == sorted(spikes)


def test_a_decision_stands_from_the_first_step_that_nothing_changes():
    answers = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert decided(answers).tolist() == [1, 2, 3, 3, 1]


@pytest.mark.parametrize("confidence", [0.0, 0.4, 1.0])
def test_a_stream_that_leaves_early_runs_no_further(confidence):
    model, (x, y) = network(), blobs()
    data = sample_data(model, (x, y), holdout=0.0, quiet=True)
    rows = []
    handle = model.layers[-1].register_forward_hook(lambda m, args, out: rows.append(len(out)))
    answers, steps = early_exit(model, torch.from_numpy(x), data.task, confidence)
    handle.remove()
    wanted = decisions(model, data.train, data.task, confidences=(confidence,), quiet=True)["exits"][0]
    assert float((answers.numpy() == y).mean()) == pytest.approx(wanted["accuracy"])
    assert float(steps.double().mean()) == pytest.approx(wanted["mean_steps"])
    assert sum(rows) == int(steps.sum())


def test_what_decides_at_once_says_so():
    for model, data, says in (
        (network(Layer(op="mean")), blobs(), "gives one output"),
        (network(), (blobs()[0], np.zeros((60, 3), np.float32)), "this is a regression"),
    ):
        samples = sample_data(model, data, holdout=0.0, quiet=True)
        with pytest.raises(FastSNNError, match=says):
            decisions(model, samples.train, samples.task, quiet=True)
    task = sample_data(network(), blobs(), quiet=True).task
    with pytest.raises(FastSNNError, match="spikes in front of the layer that begins time"):
        early_exit(network(first=ONCE), torch.rand(2, 6), task)
    model = network()
    with pytest.raises(FastSNNError, match="is a probability"):
        early_exit(model, torch.rand(2, 6), sample_data(model, blobs(), quiet=True).task, 1.5)
