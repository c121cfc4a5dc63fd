"""Converting modules: what is converted, how exactly, what is refused, and that it goes on learning."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_convert import Conversion, ConversionError, convert
from fastsnn_convert.modules import site_report
from fastsnn_convert.modules.accuracy_vs_steps import replay_by_slots
from fastsnn_core import load
from fastsnn_core.probe import probe

FINE = {"kind": "adaptive_threshold", "k": 1e4}  # so fine that spikes are numbers


class Residual(nn.Module):
    """A small CNN with branches, a reused ReLU and function calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.conv2(x) * self.scale)
        x = F.max_pool2d(torch.add(x, y), 2)
        x = F.gelu(F.adaptive_avg_pool2d(x, (2, 2)))
        return self.fc(torch.flatten(x, 1))


class Gated(nn.Module):
    """SwiGLU, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(6)
        self.gate, self.up, self.down = nn.Linear(6, 12, False), nn.Linear(6, 12, False), nn.Linear(12, 6, False)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Attends(nn.Module):
    """An encoder over ``[B, L, D]``, with attention weights thrown away and a learnt position."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 8) * 0.1)
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = x + self.position
        y, _ = self.inner(x, x, x)
        return self.head(self.encoder(x + y).mean(1))


def settled(model: nn.Module) -> nn.Module:
    """Batch norms with statistics, evaluation mode."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return model.eval()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2),
        nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def upsampler() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.LeakyReLU(), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 3, 2, 2), nn.BatchNorm2d(3),
        nn.Tanh(), nn.Conv2d(3, 1, 3, padding="same"),
    )  # fmt: skip


def tokens() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(9, 8), nn.Flatten(), nn.Linear(32, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)
    )


NETWORKS = {
    "mlp": (mlp, (6,)), "cnn": (cnn, (1, 8, 8)), "upsampler": (upsampler, (6,)), "residual": (Residual, (1, 8, 8)),
    "gated": (Gated, (4, 6)), "attends": (Attends, (4, 8)), "tokens": (tokens, (4,)),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    x = torch.randint(0, 9, (12, *shape)) if name == "tokens" else torch.randn(12, *shape)
    return settled(make()), x


@pytest.mark.parametrize("name", NETWORKS)
def test_with_fine_spikes_the_network_is_the_one_it_was(name):
    """Folding, lifting, lowering and site placing change nothing by themselves."""
    model, x = network(name)
    done = convert(model, example=x, neuron=FINE)
    torch.testing.assert_close(done.model(x), model(x), rtol=2e-3, atol=2e-3)
    assert done.report["quality"]["spikes_per_channel"] > 3


@pytest.mark.parametrize("coverage", ["projections", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_projection_reads_spikes(name, coverage):
    model, x = network(name)
    done = convert(model, example=x, coverage=coverage)
    reads: dict[str, bool] = {}
    for path, m in done.model.named_modules():
        if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            m.register_forward_hook(lambda _, args, __, path=path: reads.__setitem__(path, hasattr(args[0], "counts")))
    done.model(x)
    wanted = {"projections": all, "activations": any}[coverage]
    assert reads
    assert wanted(reads.values()) or (coverage, name) in (("activations", "tokens"), ("activations", "gated")), reads


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_is_a_bundle(name, tmp_path):
    model, x = network(name)
    done = convert(model, calibration=x, steps=4, to=tmp_path / "a.snn")
    again = load(tmp_path / "a.snn")
    assert again.spec.name == ("sequential" if name in ("mlp", "cnn", "upsampler", "tokens") else "graph")
    assert torch.equal(again(x), done.model.eval()(x))
    Conversion(again, done.report).save(tmp_path / "b.snn")
    for file in ("config.json", "weights.safetensors"):
        assert (tmp_path / "a.snn" / file).read_bytes() == (tmp_path / "b.snn" / file).read_bytes()


@pytest.mark.parametrize("neuron", ["adaptive_threshold", "lif_sint"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "tokens"])
def test_time_is_an_axis_more(name, neuron):
    """[B, T, …] is the network at every t; a membrane is carried over T, and any cut of T gives the whole."""
    model, _ = network(name)
    x = torch.randn(2, 5, *NETWORKS[name][1])
    snn = convert(model, example=x[:, 0], neuron=neuron).model
    y = snn(x)
    assert y.shape == (2, 5, *model(x[:, 0]).shape[1:])
    if neuron == "adaptive_threshold":
        torch.testing.assert_close(y[:, 3], snn(x[:, 3]), rtol=1e-4, atol=1e-4)
    snn = snn.double()
    whole, end = snn(x.double(), return_state=True)
    state, rows = None, []
    for piece in x.double().split([1, 2, 2], 1):
        part, state = snn(piece, state=state, return_state=True)
        rows.append(part)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-9)
    assert end.keys() == state.keys()
    assert bool(end) == (neuron == "lif_sint")


def test_training_goes_on():
    model, x = network("residual")
    target = torch.randint(0, 5, (12,), generator=torch.Generator().manual_seed(1))
    snn = convert(model, calibration=x, steps=3).model.train()
    optimizer = torch.optim.Adam(snn.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(snn(x), target)
        loss.backward()
        assert all(p.grad is not None for p in snn.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with probe(snn) as trace:
        snn(x)
    assert trace
    assert all(r.spikes.largest() <= 7 for r in trace.values())


def test_the_model_that_is_converted_is_left_as_it_is():
    model, x = network("residual")
    before, was = copy.deepcopy(model.state_dict()), model(x)
    convert(model.train(), calibration=x, steps=2)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(model.eval()(x), was)


@pytest.mark.parametrize("coder", ["bitwise", "ternary"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "upsampler"])
def test_slots_replayed_give_the_counts_bit_for_bit(name, coder):
    """Whole weights in float64: every product and sum is exact, so the order of the slots cannot show."""
    model, x = network(name)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 64).round())
    snn = convert(model, calibration=x, steps=4, neuron={"kind": "ilif", "beta": 0.0}).model.double()
    for m in snn.modules():  # thresholds that are powers of two, so that scaling is exact, too
        if isinstance(m, TimeFoldedSite):
            m.neuron.theta.data = 2.0 ** m.neuron.theta.data.log2().round()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            m.weight.data, m.bias.data = m.weight.data.round(), m.bias.data.round()
    counted = snn(x.double())
    with replay_by_slots(snn, coder) as taken:
        assert torch.equal(snn(x.double()), counted)
    assert taken
    assert max(taken.values()) <= (6 if coder == "bitwise" else 60)  # sums of four counts have two digits more
    assert torch.equal(snn(x.double()), counted)


def test_replay_would_see_a_wrong_slot_weight():
    """The planted fault: a coder whose last slot weighs two."""
    from fastsnn_coder_bitwise import Bitwise

    class Wrong(Bitwise):
        def encode(self, x, steps=None):
            train = super().encode(x, steps)
            train.weights[-1] += 1
            return train

    model, x = network("mlp")
    snn = convert(model, calibration=x, steps=3).model
    with replay_by_slots(snn, Wrong()):
        assert not torch.allclose(snn(x), convert(model, calibration=x, steps=3).model(x), atol=1e-3)


def test_steps_bound_the_counts():
    model, x = network("mlp")
    for steps, code, largest in ((1, "bitwise", 1), (3, "bitwise", 7), (5, "unary", 5)):
        done = convert(model, calibration=x, steps=steps, code=code)
        with probe(done.model) as trace:
            done.model(10 * x)
        assert max(r.spikes.largest() for r in trace.values()) <= largest
    assert done.report["code"] == "unary"


def test_steps_per_site():
    model, x = network("mlp")
    done = convert(model, calibration=x, steps=4, steps_per_site={"1": 2})
    assert {r["name"]: r["steps"] for r in done.report["modules"]}["1"] == 2
    assert sorted({r["steps"] for r in done.report["modules"] if r["steps"]}) == [2, 4]
    saved = convert(model, calibration=x, steps=4, steps_per_site=0.4)
    assert saved.report["quality"]["output_error"] <= 0.4
    assert sum(r["steps"] for r in saved.report["modules"] if r["steps"]) < 12
    with pytest.raises(ConversionError, match="names 'nonsense', where no site is; sites: 0, 1, 4"):
        convert(model, calibration=x, steps=4, steps_per_site={"nonsense": 2})
    with pytest.raises(ConversionError, match="needs steps="):
        convert(model, calibration=x, steps_per_site=0.1)


def test_calibration_is_better_than_none():
    """On samples that nothing was fitted to; scales and shifts of the projections take up what rounding moves."""
    model, _ = network("residual")
    x, fresh = torch.randn(300, 1, 8, 8), torch.randn(200, 1, 8, 8)
    errors = {}
    for refine in (False, True):
        report = convert(model, calibration=x, validation=fresh, steps=3, refine=refine).report
        assert report["quality"]["measured_on"] == "200 samples held out of calibration"
        errors[refine] = report["quality"]["output_error"]
    loose = convert(model, example=x[:2], neuron={"kind": "adaptive_threshold", "limit": 7}).model
    with torch.no_grad():
        y0 = model(fresh)
        errors["none"] = float((loose(fresh) - y0).norm() / (y0 - y0.mean(0)).norm())
    assert errors[True] < 0.95 * errors[False]
    assert errors[False] < errors["none"]


def test_the_report_says_what_each_module_costs():
    model, x = network("residual")
    report = convert(model, calibration=x, steps=2).report
    rows = {r["name"]: r for r in report["modules"]}
    assert json.loads(report.json()) == report
    assert rows["bn1"]["note"] == "folded into the layer before it"
    assert rows["relu"]["status"] == "converted"
    assert rows["relu_2"]["status"] == "kept"  # only the sum reads it
    assert rows["mul"]["status"] == rows["add"]["status"] == "kept"
    spiking = [r for r in report["modules"] if r["site"]]
    assert all(0 <= r["silent_fraction"] <= 1 and 0 <= r["saturation"] <= 1 and r["steps"] <= 2 for r in spiking)
    assert all(r["error"] > 0 for r in spiking)
    assert spiking[0]["error"] == pytest.approx(spiking[0]["cumulative"])
    assert all(r["cumulative"] > 0 for r in spiking)
    with torch.no_grad():
        y0, y = model(x), convert(model, calibration=x, steps=2).model(x)
    wanted = float((y - y0).norm() / (y0 - y0.mean(0)).norm())
    assert report["quality"]["output_error"] == pytest.approx(wanted, rel=1e-4)
    assert report["quality"]["measured_on"] == "12 samples that thresholds were chosen on"
    text, page = report.summary(), report.html()
    for part in (text, page):
        assert "conv1" in part
        assert "so far" in part
    assert "<script" not in page
    assert "what to try" in text


def test_errors_alone_are_found_where_they_are_made():
    """The planted fault: one site whose threshold is far too high stands out in the table, and the advice names it."""
    from fastsnn_convert.modules.to_spec import site_modules

    model, x = network("mlp")
    done = convert(model, calibration=x, steps=4)
    sites = site_modules(done.model)
    bad = list(sites)[1]
    sites[bad].neuron.k.fill_(0.02)
    site_report.fill_site_rows(done.model, sites, (x,), done.report["modules"], errors=True)
    errors = {r["site"]: r["error"] for r in done.report["modules"] if r["site"]}
    assert max(errors, key=errors.get) == bad
    assert errors[bad] > 0.5
    name = next(r["name"] for r in done.report["modules"] if r["site"] == bad)
    assert any(line.startswith(f"{name} ") for line in done.report.advice())


# -- what cannot be seen -------------------------------------------------------------------------------------------
