"""The conformance kit over this plugin, and what it says of spikes that can be counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastsnn_core import SpikeTensor, build, create
from fastsnn_core.probe import Record
from fastsnn_core.subject import Subject, observe
from fastsnn_core.testing import conformance
from fastsnn_leaky.neurons import Leaky
from fastsnn_scope_membrane import Membrane, busiest
from fastsnn_scope_membrane.readout import apart

test_membrane = conformance("membrane")


class Replaying(nn.Module):
    """Integrate and fire on |x| with threshold 1 from half a threshold."""

    def replay(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        level, membranes, spikes = x.abs() + 0.5, [], []
        for _ in range(steps):
            membranes.append(level)
            spikes.append((level >= 1).float() * x.sign())
            level = level - spikes[-1].abs()
        return torch.stack(membranes), torch.stack(spikes)


def subject(labels: tuple[str, ...] = (), **records: Record) -> Subject:
    return Subject(nn.Identity(), torch.zeros(1, 3, dtype=torch.long), dict(records), labels)


def leaky(hi: float = 4.0, lo: float = 0.0, heaviside: bool = False) -> Record:
    module = Leaky(beta=0.5, threshold=2.0, lo=lo, hi=hi, heaviside=heaviside)
    x = torch.tensor([[[2.0, 0.0], [3.0, 0.0], [1.0, -6.0]]])
    return Record(x, module(x)[0], module)


def replaying() -> Record:
    x = torch.tensor([[[0.2, 0.0, 1.0], [-3.2, 5.0, 0.4]]])
    return Record(x, SpikeTensor(x.round(), torch.ones(1, 2, 1)), Replaying())


def test_leaky_membrane_and_levels_by_hand():
    (site,) = Membrane().measure(subject(a=leaky()))["sites"]
    assert site["levels"] == [1.0]  # counts are rounded: the first spike falls at θ/2
    (trace,) = site["traces"]  # channel 1 never fires
    # u_0 = 2, count 1; u_1 = 0 + 3, round(1.5) = 2; u_2 = -1 / 2 + 1 = 0.5, count 0
    assert trace == {"channel": 0, "u": [2.0, 3.0, 0.5], "counts": [1, 2, 0]}


def test_levels_of_steps_and_of_signed_neurons():
    (site,) = Membrane().measure(subject(a=leaky(hi=1.0, heaviside=True)))["sites"]
    assert site["levels"] == [2.0]
    (site,) = Membrane().measure(subject(a=leaky(lo=-4.0)))["sites"]
    assert site["levels"] == [1.0, -1.0]
    assert [t["counts"] for t in site["traces"]] == [[1, 2, 0], [0, 0, -3]]


def test_replay_inside_the_busiest_token():
    data = Membrane(channels=2).measure(subject(("x", "y"), a=replaying()))
    (site,) = data["sites"]
    assert (site["token"], site["label"], site["steps"]) == (1, "y", 7)
    first, second = site["traces"]
    assert (first["channel"], first["count"], sum(first["spikes"])) == (1, 5, 5)
    assert (second["channel"], second["count"], second["spikes"]) == (0, -3, [-1, -1, -1, 0, 0, 0, 0])
    assert second["u"] == pytest.approx([3.7, 2.7, 1.7, 0.7, 0.7, 0.7, 0.7])


def test_counts_beyond_the_steps_are_not_replayed():
    (site,) = Membrane(steps=4).measure(subject(a=replaying()))["sites"]
    assert [t["channel"] for t in site["traces"]] == [0]


def test_a_neuron_that_offers_neither_is_named():
    silent = Record(torch.ones(1, 3, 2), SpikeTensor(torch.ones(1, 3, 2)), nn.Tanh())
    only = Membrane().measure(subject(a=silent))
    assert only == {"reason": "a: Tanh offers neither membrane(x) nor replay(x, steps)"}
    both = Membrane().measure(subject(a=silent, b=leaky()))
    assert both["notes"] == ["a: Tanh offers neither membrane(x) nor replay(x, steps)"]
    assert (
        "no token axis" in Membrane().measure(subject(a=Record(torch.ones(1, 2), silent.spikes, nn.Tanh())))["reason"]
    )


def test_busiest_goes_down_to_the_median():
    assert busiest(torch.tensor([0.0, 5.0, 1.0, 3.0, 2.0, 4.0]), 3) == [1, 5, 3]
    assert busiest(torch.zeros(3), 2) == [0]


@pytest.mark.parametrize("coder", ["bitwise", "ternary", "twos_complement", {"kind": "bitwise", "order": "lsb"}])
def test_the_event_runtime_shows_its_own_spike_times(coder):
    model = build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17)).eval()
    model.runtime("event", coder)
    scope = Membrane()
    data = json.loads(json.dumps(scope.measure(observe(model, torch.arange(6)[None]))))
    for site in data["sites"]:
        for trace in site["traces"]:
            weights = [round(level / trace["threshold"]) for level in trace["levels"]]
            weights[0] = weights[0] or -(2 ** (len(weights) - 1))  # two's complement
            assert sum(w * s for w, s in zip(weights, trace["spikes"])) == trace["count"]
    figure = Figure(layout="constrained")
    scope.draw(data, figure)
    figure.canvas.draw()


@pytest.mark.parametrize("forms", [("a",), ("b",), ("a", "b")])
def test_draws_tokens_steps_and_both(forms):
    scope, records = Membrane(), {"a": leaky(lo=-4.0), "b": replaying()}
    data = json.loads(json.dumps(scope.measure(subject(("$", "_"), **{name: records[name] for name in forms}))))
    figure = Figure(layout="constrained")
    scope.draw(data, figure)
    figure.canvas.draw()
    assert len(figure.axes) + sum(len(f.axes) for f in figure.subfigs) >= 2 * len(forms)


def over_time(outputs: list[list[float]], truth: str = "", **trained: object) -> Subject:
    """A network that gave ``[T, C]`` for its first sample, and what its meta says."""
    model = nn.Identity()
    if trained:
        model.meta = {"milestones": [{"task": "classification"} | trained]}
    out = torch.tensor([outputs, outputs])
    return Subject(model, torch.zeros(2, 3), {"a": leaky()}, (), out, truth)


def test_readout_by_hand():
    # answers of the mean: step 1 b; step 2 (1.0 against 1.5, 0) b; step 3 (3.0 against 1.0, 0) a
    subject = over_time([[0.0, 1.0, 0.0], [2.0, 2.0, 0.0], [7.0, 0.0, 0.0]], "c", classes=["a", "b", "c"])
    data = Membrane().measure(subject)
    row = data["readout"]
    assert (row["said"], row["since"], row["truth"], row["known"]) == ("a", 3, "c", False)
    assert row["names"] == ["a", "b", "c"]
    assert row["scores"][:2] == [[0.0, 1.0, 3.0], [1.0, 1.5, 1.0]]
    assert row["outputs"][0] == [0.0, 2.0, 7.0]
    assert row["confidence"] == pytest.approx(float(torch.tensor([3.0, 1.0, 0.0]).softmax(0)[0]), abs=1e-4)
    assert "a c, is taken for a from step 3 of 3 on" in data["notes"][0]
    assert "their mean is shown" in data["notes"][1]


@pytest.mark.parametrize(
    ("how", "scores"), [("max", [1.0, 4.0, 4.0]), ("sum", [1.0, 5.0, 5.0]), ("last", [1.0, 4.0, 0.0])]
)
def test_the_readout_is_that_of_the_training(how, scores):
    pytest.importorskip("fastsnn_objective_cross_entropy")
    config = {"objective": {"kind": "cross_entropy", "readout": how}}
    row = Membrane().measure(over_time([[1.0, 0.0], [4.0, 0.0], [0.0, 0.0]], config=config))["readout"]
    assert row["scores"][0] == scores
    assert row["known"]
    assert bool(row["outputs"]) == (how != "last"), "the same picture is not drawn twice"


def test_many_classes_and_steps_are_thinned_and_the_true_one_stays():
    outputs = [[float(c) for c in range(40)] for _ in range(2000)]
    row = Membrane().measure(over_time(outputs, "3"))["readout"]
    assert row["names"] == ["3", *map(str, range(31, 40))]
    assert (len(row["steps"]), row["steps"][0], row["steps"][-1], row["of_steps"]) == (512, 1, 2000, 2000)


def test_a_network_that_answers_once_has_no_readout_over_time():
    found = over_time([[1.0, 2.0]])
    assert "readout" not in Membrane().measure(found)
    flat = Subject(nn.Identity(), torch.zeros(2, 3), {"a": leaky()}, (), torch.zeros(2, 5))
    assert "readout" not in Membrane().measure(flat)


def test_numbers_are_no_classes():
    row = Membrane().measure(over_time([[1.0, 2.0], [2.0, 1.0]], task="regression"))["readout"]
    assert "said" not in row


def test_observe_keeps_outputs_of_networks_without_tokens():
    assert observe(nn.Linear(3, 2), torch.zeros(4, 3)).outputs.shape == (4, 2)
    assert observe(nn.Embedding(5, 2), torch.zeros(1, 3, dtype=torch.long)).outputs is None


def test_names_do_not_lie_on_each_other():
    found = apart([("a", 0.0), ("b", 0.1), ("c", 5.0), ("d", 0.2)], 1.0)
    heights = dict(found)
    assert heights == pytest.approx({"a": -0.9, "b": 0.1, "d": 1.1, "c": 5.0})
    assert apart([("a", 0.0), ("b", 1.5)], 1.0) == [("a", 0.0), ("b", 1.5)]


def test_draws_the_readout_in_front():
    scope = Membrane()
    data = json.loads(json.dumps(scope.measure(over_time([[0.0, 1.0], [2.0, 0.0]], "1"))))
    figure = Figure(layout="constrained")
    scope.draw(data, figure)
    figure.canvas.draw()
    first, second = figure.subfigs[0].axes
    assert first.get_title(loc="left") == "readout at each step"
    colours = {line.get_label(): line.get_color() for line in second.lines}
    assert list(colours.values()) == ["#0072b2", "#d55e00"], "blue the answer, orange the true class"
