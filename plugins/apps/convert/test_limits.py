"""What converting modules cannot do and says so, what it does in one line, and steps against accuracy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_convert import ConversionError, TinyANN, convert, convert_ann_to_snn
from fastsnn_convert.modules.accuracy_vs_steps import EarlyExit, accuracy_curve
from fastsnn_core.probe import probe

FINE = {"kind": "adaptive_threshold", "k": 1e4}  # so fine that spikes are numbers


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 3))


class Branches(nn.Module):
    """Depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        h = self.act(self.fc(x))
        if h.sum() > 1e9:
            h = -h
        return self.out(h)


def test_a_forward_that_depends_on_data_is_refused_with_its_line():
    with pytest.raises(ConversionError) as error:
        convert(Branches(), example=torch.randn(2, 4))
    text = str(error.value)
    assert "test_limits.py:" in text
    assert "`if h.sum() > 1e9:` (what it does depends on data, or on a size that may vary)" in text
    assert "nn.Module of its own" in text
    assert "functional=False" in text


def test_a_part_that_depends_on_data_is_kept_and_its_modules_are_converted():
    model, x = nn.Sequential(nn.Linear(4, 4), Branches()).eval(), torch.randn(6, 4)
    done = convert(model, example=x, neuron=FINE)
    row = next(r for r in done.report["modules"] if r["name"] == "1")
    assert "torch.fx cannot see through" in row["note"]
    assert "`if h.sum() > 1e9:`" in row["note"]
    assert "3 of its modules are converted where they stand" in row["note"]
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-3, atol=2e-3)
    with probe(done.model) as trace:
        done.model(x)
    assert len(trace) >= 3
    with pytest.raises(ConversionError, match=r"cannot be saved as a bundle: module 1 \(Branches\)"):
        done.save("nowhere.snn")


class Choosy(nn.Module):
    """Takes one of two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_a_site_that_the_data_does_not_reach_is_left_alone():
    done = convert(Choosy(), calibration=torch.ones(4, 4), steps=3, functional=False)
    figures = {r["name"]: r["silent_fraction"] for r in done.report["modules"]}
    assert figures["a"] is not None
    assert figures["b"] is None
    assert done.model(-torch.ones(2, 4)).shape == (2, 4)


def test_modules_only():
    model, x = Branches().eval(), torch.randn(6, 4)
    done = convert(model, example=x, neuron=FINE, functional=False)
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-3, atol=2e-3)
    assert done.model(torch.randn(2, 3, 4)).shape == (2, 3, 2)
    assert [r["status"] for r in done.report["modules"]] == ["converted"] * 3
    with pytest.raises(ConversionError, match="functional=False: its forward is code"):
        done.save("nowhere.snn")
    calibrated = convert(model, calibration=x, steps=3, functional=False)
    assert calibrated.report["quality"]["output_error"] < 1


class Odd(nn.Module):
    """Nobody's rule."""

    def forward(self, x):
        return torch.erfinv(0.5 * torch.tanh(x))


def test_an_unknown_module_is_kept_intact_and_listed():
    class Leaf(nn.LSTM):
        """Of torch.nn, without a rule."""

        def forward(self, x):
            return super().forward(x)[0]

    Leaf.__module__ = "torch.nn"
    model, x = (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Leaf(4, 4, batch_first=True), nn.Linear(4, 2)).eval(),
        torch.randn(3, 5, 4),
    )
    done = convert(model, example=x, neuron=FINE)
    row = next(r for r in done.report["modules"] if r["name"] == "2")
    assert (row["status"], row["rule"]) == ("kept", "")
    assert row["note"] == "no rule covers Leaf; kept intact"
    assert any("fastsnn new-plugin rule" in line for line in done.report.advice())
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-3, atol=2e-3)


class Calls(nn.Module):
    """Layers without modules, between layers with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.group = nn.Conv1d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.up, self.out = nn.ConvTranspose1d(4, 4, 2, 2), nn.Linear(6, 2)
        self.w, self.kernel = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 4, 1))

    def forward(self, x):
        x = F.relu(self.group(self.first(x)))
        x = F.conv1d(self.up(x), self.kernel)
        x = F.layer_norm(F.avg_pool1d(x, 2).mean(-1), (4,))
        return self.out(F.silu(F.linear(x, self.w)))


def test_calls_with_weights_of_their_own_are_listed_with_what_would_make_them_spike():
    model, x = Calls().eval(), torch.randn(5, 3, 8)
    done = convert(model, example=x, neuron=FINE)
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-3, atol=2e-3)
    rows = {r["class"]: r for r in done.report["modules"]}
    assert [rows[n]["status"] for n in ("Conv1d", "ConvTranspose1d", "Linear")] == ["converted"] * 3
    assert [rows[n]["status"] for n in ("GroupNorm", "conv1d()", "layer_norm()", "linear()")] == ["kept"] * 4
    assert "an nn.Conv in its place would read spikes" in rows["conv1d()"]["note"]
    assert "an nn.Linear in its place would read spikes" in rows["linear()"]["note"]


def test_a_call_that_no_spec_can_say_keeps_it_out_of_a_bundle():
    done = convert(nn.Sequential(nn.Linear(4, 4), Odd()), example=torch.randn(2, 4))
    with pytest.raises(ConversionError, match="cannot be saved as a bundle: call erfinv"):
        done.save("nowhere.snn")


class Random(nn.Module):
    """Another answer every time."""

    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (Random(), {"example": torch.randn(2, 3)}, "Random gives another output each time"),
        (mlp(), {"example": torch.randn(2, 5)}, "does not run on an example of shape (2, 5)"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), {}, "does not say how large its input is; give example="),
        (mlp(), {"coverage": "all"}, "no coverage 'all'; coverages: projections, activations"),
        (mlp(), {"steps": 2, "code": "morse"}, "no code 'morse'; codes: bitwise, unary"),
        (mlp(), {"steps": 0}, "at least one step is needed, got 0"),
        (mlp(), {"neuron": {"kind": "lif", "tua": 2.0}}, "lif has no parameter 'tua'"),
        (mlp(), {"neuron": "lif", "steps": 0}, "at least one step"),
        (mlp(), {"example": "x.txt"}, "example='x.txt' is text, which is for language"),
        (mlp(), {"example": [1, 2]}, "example and calibration are tensors"),
    ],
    ids=range(10),
)
def test_refusals_say_what_is_possible(model, options, says):
    with pytest.raises(ConversionError) as error:
        convert(model, **options)
    assert says in str(error.value)


# -- the seeds' face, steps, early exit ------------------------------------------------------------------------------


def test_the_one_line_conversion():
    torch.manual_seed(0)
    ann = TinyANN(in_dim=12, hidden=16, out_dim=4)
    snn = convert_ann_to_snn(ann, d_model_fallback=128)
    x = torch.randn(2, 7, 12)
    assert snn(x).shape == ann(x).shape == (2, 7, 4)
    assert snn(x[:, 0]).shape == (2, 4)
    assert snn.report.counts == {"converted": 5}
    with probe(snn) as trace:
        snn(x)
    assert len(trace) == 2
    assert all(r.spikes.largest() > 0 for r in trace.values())
    with torch.no_grad():
        y, y0 = snn(x), ann(x)
    assert float((y - y0).norm() / (y0 - y0.mean((0, 1))).norm()) < 0.3  # k = 3: counts of about 3


def test_the_fallback_is_the_width_that_nobody_tells():
    class Bare(nn.Module):
        def forward(self, x):
            return F.relu(x)

    assert convert_ann_to_snn(Bare(), d_model_fallback=32)(torch.randn(2, 32)).shape == (2, 32)


def blobs() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Three clouds and a network that tells them apart."""
    torch.manual_seed(3)
    labels = torch.randint(0, 3, (300,))
    x = torch.randn(300, 6) + 3 * F.one_hot(labels, 6)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model, x, labels


def test_a_module_is_healed_on_data_without_labels():
    """The dense outputs are those of the network before: a healed one cannot be measured against itself."""
    model, x, _ = blobs()
    with torch.no_grad():
        y0 = model(x)
    raw, healed = (convert(model, calibration=x, validation=x, steps=1, heal_steps=n) for n in (0, 200))
    errors = {}
    for name, done in {"raw": raw, "healed": healed}.items():
        with torch.no_grad():
            errors[name] = float((done.model(x) - y0).norm() / (y0 - y0.mean(0)).norm())
        assert done.report["quality"]["output_error"] == pytest.approx(errors[name], rel=1e-4)
    assert errors["healed"] < 0.95 * errors["raw"]
    assert raw.report["healed"] == []
    assert healed.report["healed"][1] < healed.report["healed"][0]
    with torch.no_grad():
        assert torch.equal(model(x), y0)
    only = convert(model, example=x, heal=x, heal_steps=3)
    assert only.report["healed"]
    for options in ({"heal_steps": 5}, {"heal_steps": 5, "functional": False, "heal": x}, {"heal": x}):
        with pytest.raises(ConversionError, match="healing needs heal_steps="):
            convert(model, example=x, **options)


def test_accuracy_against_steps_and_early_exit():
    model, x, labels = blobs()
    rows, found = accuracy_curve(model, x, labels, calibration=x[:100], steps=(1, 2, 4))
    assert rows[-1]["accuracy"] >= rows[0]["accuracy"]
    assert rows[-1]["accuracy"] > 0.9
    assert found[4].report["curve"] == rows
    assert "against steps" in found[4].report.summary()
    exits = EarlyExit({s: done.model for s, done in found.items()})
    never, always = exits.measure(x, labels, confidence=1.1), exits.measure(x, labels, confidence=0.0)
    assert never["mean_steps"] == 4
    assert never["mean_slots"] == 7
    assert never["accuracy"] == rows[-1]["accuracy"]
    assert always["mean_steps"] == always["mean_slots"] == 1
    assert always["accuracy"] == rows[0]["accuracy"]
    some = exits.measure(x, labels, confidence=0.9)
    assert 1 < some["mean_steps"] < 4
    with pytest.raises(ConversionError, match="at least one network"):
        EarlyExit({})


@pytest.mark.parametrize(
    ("home", "kind", "says"),
    [
        ("snntorch._neurons.leaky", "Leaky", "reset_delay = true"),
        ("spikingjelly.activation_based.neuron", "LIFNode", "hard_reset = true"),
        ("norse.torch.module.lif_box", "LIFBox", "dt·tau_mem_inv"),
    ],
)
def test_a_spiking_neuron_of_another_library_is_named_with_ours(home, kind, says, monkeypatch):
    monkeypatch.setattr("fastsnn_convert.networks.reader_of", lambda source: None)  # as without fastsnn-toolkits
    neuron = type(kind, (nn.Module,), {"__module__": home, "forward": lambda self, x: (x > 1).float()})
    with pytest.raises(ConversionError, match=says) as raised:
        convert(nn.Sequential(nn.Linear(4, 3), neuron()), calibration=torch.randn(40, 4))
    assert f"module '1' is {kind} of {home.partition('.')[0]}" in str(raised.value)
