"""Neurons of other toolkits, by stand-in classes of their names and equations: read, run beside, or refused.

``test_real_toolkits.py`` does the same with the packages themselves (``nox -s rivals``).
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert import convert
from fastsnn_core import load


def stand_in(cls, module):
    cls.__module__ = module
    return cls


class Leaky(nn.Module):
    """snnTorch's equation at its defaults: the reset of the next step, after the decay."""

    def __init__(self, beta, threshold=1.0, reset_mechanism=0, reset_delay=True, output=False):
        super().__init__()
        for name, value in (("threshold", threshold), ("graded_spikes_factor", 1.0), ("beta", beta)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.register_buffer("reset_mechanism_val", torch.tensor(reset_mechanism))
        self.reset_delay, self.output, self.inhibition, self.state_quant = reset_delay, output, False, False
        self.reset_mem()

    def reset_mem(self):
        self.mem = torch.zeros(())
        return self.mem

    def forward(self, x, mem=None):
        mem = self.mem if mem is None else mem
        fired = (mem > self.threshold).float()
        if int(self.reset_mechanism_val) == 1:
            self.mem = self.beta * (1 - fired) * mem + x
        else:
            self.mem = self.beta * mem + x - fired * self.threshold
        spikes = (self.mem > self.threshold).float()
        return (spikes, self.mem) if self.output else spikes


class LIFNode(nn.Module):
    """SpikingJelly's equation, single step."""

    def __init__(self, tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0):
        super().__init__()
        self.tau, self.decay_input, self.v_threshold, self.v_reset = tau, decay_input, v_threshold, v_reset
        self.step_mode = "s"
        self.reset()

    def reset(self):
        self.v = 0.0 if self.v_reset is None else self.v_reset

    def forward(self, x):
        rest = 0.0 if self.v_reset is None else self.v_reset
        if self.decay_input:
            v = self.v + (x - (self.v - rest)) / self.tau
        else:
            v = self.v - (self.v - rest) / self.tau + x
        spike = (v >= self.v_threshold).float()
        self.v = v - spike * self.v_threshold if self.v_reset is None else (1 - spike) * v + spike * self.v_reset
        return spike


class IFNode(LIFNode):
    def __init__(self, **more):
        super().__init__(tau=float("inf"), decay_input=False, **more)


class LIFCell(nn.Module):
    """Norse's equation."""

    def __init__(self, p, dt=1e-3):
        super().__init__()
        self.p, self.dt = p, dt

    def forward(self, x, state=None):
        i, v = (torch.zeros_like(x), torch.zeros_like(x)) if state is None else state
        i = i + x
        v = v + self.dt * self.p.tau_mem_inv * (self.p.v_leak - v + i)
        z = (v > self.p.v_th).float()
        return z, (i - self.dt * self.p.tau_syn_inv * i, (1 - z) * v + z * self.p.v_reset)


class Odd(nn.Module):
    pass


for made, where in (
    (Leaky, "snntorch._neurons.leaky"), (LIFNode, "spikingjelly.activation_based.neuron.lif"),
    (IFNode, "spikingjelly.activation_based.neuron.integrate_and_fire"), (LIFCell, "norse.torch.module.lif"),
    (Odd, "snntorch._neurons.alpha"),
):  # fmt: skip
    stand_in(made, where)

P = SimpleNamespace(
    tau_syn_inv=torch.tensor(200.0), tau_mem_inv=torch.tensor(100.0), v_leak=torch.tensor(0.0),
    v_th=torch.tensor([0.7, 0.9, 1.1, 0.3, 0.4, 0.5]), v_reset=torch.tensor(-0.1),
)  # fmt: skip


def networks():
    torch.manual_seed(1)
    a, b = nn.Linear(8, 12), nn.Linear(12, 6)
    b.weight.data *= 3  # torch's fresh weights leave a second layer silent
    image = (nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    image[0].weight.data *= 2
    image[3].weight.data *= 4
    return {
        "snntorch": nn.Sequential(a, Leaky(0.9), b, Leaky(0.8, output=True)),
        "snntorch, zero, thresholds": nn.Sequential(
            a, Leaky(0.7, torch.linspace(0.5, 0.9, 12), 1), nn.Dropout(), b, Leaky(0.5, 0.7, 1)
        ),
        "spikingjelly": nn.Sequential(a, LIFNode(3.0), b, LIFNode(1.5, v_reset=None)),
        "spikingjelly, rest": nn.Sequential(
            a, LIFNode(3.0, False, 0.6, -0.2), nn.Sequential(b, IFNode(v_threshold=0.9))
        ),
        "norse": nn.Sequential(b, LIFCell(P)),
        "images": nn.Sequential(image[0], LIFNode(2.0), *image[1:], IFNode()),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_spikes_are_those_of_the_original(name, tmp_path):
    net = networks()[name]
    example = torch.rand(2, 2, 6, 6) if name == "images" else None
    done = convert(net, to=tmp_path / "n.snn", **({} if example is None else {"example": example}))
    model = load(tmp_path / "n.snn")
    x = torch.rand(3, 60, *model.spec.input, generator=torch.Generator().manual_seed(9)) * 6
    parts = [m for m in net.modules() if not isinstance(m, nn.Sequential)]
    for part in parts:
        part.eval()
        getattr(part, "reset_mem", getattr(part, "reset", lambda: None))()
    rows, state = [], None
    with torch.no_grad():
        for t in range(60):
            h = x[:, t]
            for part in parts:
                h = part(h, state) if isinstance(part, LIFCell) else part(h)
                if isinstance(h, tuple):
                    h, state = h
            rows.append(h)
        wanted, found = torch.stack(rows, 1), model(x)
    assert 0.02 < float(wanted.mean()) < 0.98
    assert torch.equal(found, wanted), f"{float((found == wanted).float().mean()):.2%} agree"
    assert "run beside the original: 100.00%" in done.report["modules"][-1]["note"]


class Tutorial(nn.Module):
    """snnTorch's tutorial 5: the loop over time inside, what every step gave stacked in front."""

    def __init__(self, pool=False):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(8, 12), Leaky(0.95), nn.Linear(12, 6), Leaky(0.95)
        self.pool = pool

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        steps = []
        for _ in range(25):
            spikes = self.lif1(self.fc1(x))
            steps.append(self.lif2(self.fc2(spikes.flip(1) if self.pool else spikes)))
        return torch.stack(steps), None


def test_a_tutorials_module_and_its_state_dict():
    torch.manual_seed(0)
    net = Tutorial()
    model, again = convert(net).model, convert(net.state_dict()).model
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(2)) * 4
    with torch.no_grad():
        wanted = net(x)[0].transpose(0, 1)
        assert 0.02 < float(wanted.mean()) < 0.98
        for found in (model, again):
            assert torch.equal(found(x[:, None].expand(-1, 25, -1)), wanted)
    spec = {"kind": "sequential", "input": [8], "layers": [
        {"op": "linear", "size": 12},
        {"op": "spikes", "neuron": {"kind": "lif", "convention": "snntorch", "tau": 20.0}},
        {"op": "linear", "size": 6},
    ]}  # fmt: skip
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("lif2")}
    done = convert(
        state, spec=spec, names={"fc1": "layers.0", "fc2": "layers.2"}, neuron="adaptive_threshold", measure=False
    )
    assert done.model is not None


def test_calibration_is_an_example_that_both_are_run_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), Leaky(0.9), nn.Flatten(), nn.Linear(48, 4), Leaky(0.8))
    given = torch.rand(5, 1, 6, 6) * 3
    done = convert(net, calibration=given)
    assert "on inputs of five sizes and on calibration" in json.dumps(done.report)
    assert done.model.spec.input == (1, 6, 6)
    for wrong, says in (
        (given[0, 0, 0], "example .or calibration. must be inputs"),
        (given[:0], "calibration must be"),
    ):
        with pytest.raises(ConversionError, match=says):
            convert(net, calibration=wrong)
    with pytest.raises(ConversionError, match=r"calibration must be inputs .* one step, got"):
        convert(net, example=given, calibration=torch.rand(2, 1, 7, 6))


def test_what_differs_on_the_calibration_alone_is_refused():
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), Leaky(0.9)

        def forward(self, x):
            return self.b(self.a(x) * (1 if x.abs().max() < 1000 else -1))

    torch.manual_seed(0)
    assert convert(Clipped()).model is not None
    with pytest.raises(ConversionError, match="computes something else"):
        convert(Clipped(), calibration=torch.rand(3, 4) * 2000)


def test_what_computes_something_else_is_refused():
    """Layers that the forward calls otherwise; nothing is handed over that spikes otherwise."""
    torch.manual_seed(0)
    with pytest.raises(ConversionError, match="something else than its layers"):
        convert(Tutorial(pool=True))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Linear(3, 3), Odd()), "snntorch.Odd.*no equal here"),
        (nn.Sequential(nn.Linear(3, 3), Leaky(0.9, reset_mechanism=2)), "'none' has no equal"),
        (nn.Sequential(nn.Linear(3, 3), Leaky(torch.tensor([0.9, 0.8, 0.7]))), "beta differs from channel to channel"),
        (nn.Sequential(nn.Linear(3, 3), Leaky(0.9, reset_delay=False)), "twice the threshold"),
        (nn.Sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 3), Leaky(0.9)), "not known here as a layer"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), Leaky(0.9)), "give example="),
        (nn.Sequential(nn.Linear(3, 3), Leaky(0.9), nn.Linear(3, 3), LIFNode()), "one convention"),
        (nn.Sequential(nn.Linear(3, 4), Leaky(0.9), nn.Linear(3, 3)), "do not fit together"),
        (nn.Sequential(Leaky(0.9, 0.5), nn.ReLU()), "no weights in front or behind|shape of its input"),
        ({"c.weight": torch.zeros(1, 1, 3, 3), "lif.reset_mechanism_val": torch.tensor(0),
          "lif.beta": torch.tensor(0.5),
          "lif.threshold": torch.tensor(1.0)}, "give spec="),
    ],
)  # fmt: skip
def test_what_has_no_equal_is_refused_by_name(net, said, tmp_path):
    with pytest.raises(ConversionError, match=said):
        convert(net, to=tmp_path / "n.snn")
    with pytest.raises(ConversionError, match="options: example"):
        convert(networks()["snntorch"], k=3)
    assert not list(tmp_path.iterdir())
