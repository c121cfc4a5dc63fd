"""The metrics counted by loops, and NeuroBench's own beside them where it is installed (``nox -s rivals``)."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import Model, build, create
from fastsnn_core.errors import FastSNNError, MissingError
from fastsnn_core.spec import converter
from fastsnn_neurobench import neurobench_metrics, neurobench_model


def network(neuron, conv=False):
    torch.manual_seed(0)
    front = [{"op": "conv2d", "size": 3, "kernel": [3], "padding": [1]}, {"op": "spikes", "neuron": neuron},
             {"op": "max_pool", "kernel": [2]}, {"op": "flatten"}]  # fmt: skip
    layers = [*(front if conv else []), {"op": "linear", "size": 12}, {"op": "spikes", "neuron": neuron},
              {"op": "linear", "size": 5}]  # fmt: skip
    table = {"kind": "sequential", "input": [2, 4, 4] if conv else [8], "layers": layers}
    model = build(converter().structure(table, Model)).eval()
    with torch.no_grad():
        for layer in model.layers:
            if hasattr(layer, "weight"):
                layer.weight[torch.rand(layer.weight.shape) < 0.3] = 0.0
    return model


def stimulus(conv=False):
    return torch.rand(3, 6, *((2, 4, 4) if conv else (8,)), generator=torch.Generator().manual_seed(1)) * 2


LIF, COUNTS = {"kind": "lif", "fixed": True, "threshold": 0.4}, {"kind": "adaptive_threshold", "k": 3.0}


@pytest.mark.parametrize("neuron", [LIF, COUNTS], ids=["lif", "counts"])
def test_by_loops(neuron):
    model, x = network(neuron), stimulus()
    found = neurobench_metrics(model, x)
    first, site, second = model.layers
    with torch.no_grad():
        spikes = []
        handle = site.register_forward_hook(lambda _, args, y: spikes.append(y.counts))
        model(x)
        handle.remove()
    c = spikes[0].reshape(18, 12)
    macs = sum(
        int(v != 0) * int((first.weight[:, i] != 0).sum()) for row in x.reshape(18, 8) for i, v in enumerate(row)
    )
    behind = [int((second.weight[:, i] != 0).sum()) for i in range(12)]
    once = sum(int(v != 0) * behind[i] for row in c for i, v in enumerate(row))
    each = sum(int(abs(v)) * behind[i] for row in c for i, v in enumerate(row))
    binary = neuron is LIF
    assert found.effective_acs * 3 == pytest.approx(once if binary else 0)
    assert found.effective_macs * 3 == pytest.approx(macs + (0 if binary else once))
    assert found.dense * 3 == 18 * (8 * 12 + 12 * 5)
    assert found.activation_sparsity == pytest.approx(float((c == 0).float().mean()))
    zeros = int((first.weight == 0).sum() + (second.weight == 0).sum())
    assert found.connection_sparsity == pytest.approx(zeros / (8 * 12 + 12 * 5))
    assert 0.02 < found.activation_sparsity < 0.95
    assert found.additions * 3 == pytest.approx(macs + each)
    assert (each > 1.5 * once) != binary


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("neuron", [LIF, COUNTS], ids=["lif", "counts"])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_neurobench_says_the_same(neuron, conv):
    pytest.importorskip("neurobench")
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations

    model, x = network(neuron, conv), stimulus(conv)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(3)), batch_size=3)
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations]]
    theirs = Benchmark(neurobench_model(model), data, [], [], metrics).run(quiet=True)
    ours = neurobench_metrics(model, x)
    assert theirs["Footprint"] == ours.footprint
    assert theirs["ConnectionSparsity"] == pytest.approx(ours.connection_sparsity, abs=1e-4)
    assert theirs["ActivationSparsity"] == pytest.approx(ours.activation_sparsity)
    synops = theirs["SynapticOperations"]
    assert synops["Effective_ACs"] == pytest.approx(ours.effective_acs)
    assert synops["Effective_MACs"] == pytest.approx(ours.effective_macs)
    assert synops["Dense"] == pytest.approx(ours.dense)
    assert ours.effective_acs + ours.effective_macs > 0


def test_what_is_not_measured_is_said(monkeypatch):
    coded = torch.nn.Module()
    coded.register_buffer("weight", torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(FastSNNError, match="float bundle"):
        neurobench_metrics(torch.nn.Sequential(torch.nn.Linear(2, 2), coded), torch.ones(1, 2))
    with pytest.raises(FastSNNError, match="no linear layer"):
        neurobench_metrics(create("neuron", "lif").build(2), torch.ones(1, 1, 2))
    monkeypatch.setitem(__import__("sys").modules, "neurobench.models", None)
    with pytest.raises(MissingError, match="pip install neurobench"):
        neurobench_model(network(LIF))
