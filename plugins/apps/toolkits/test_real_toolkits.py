"""The toolkits themselves: networks of their own neurons converted, 100 steps, every spike (``nox -s rivals``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert import convert

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 100


def snntorch_networks() -> dict[str, Callable[[], nn.Module]]:
    import snntorch as snn

    def pair(make: Any, **more: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 12), make(**more), nn.Linear(12, 6), make(**more, output=True))

    class Net(nn.Module):
        """Tutorial 5."""

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(8, 12), snn.Leaky(beta=0.95)
            self.fc2, self.lif2 = nn.Linear(12, 6), snn.Leaky(beta=0.95)

        def forward(self, x: torch.Tensor) -> Any:
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            spikes, membranes = [], []
            for _ in range(STEPS):
                spk1, mem1 = self.lif1(self.fc1(x), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                spikes.append(spk2)
                membranes.append(mem2)
            return torch.stack(spikes), torch.stack(membranes)

    image = [nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5, init_hidden=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 6)]
    return {
        "Leaky": lambda: pair(snn.Leaky, beta=0.9, init_hidden=True),
        "Leaky, zero": lambda: pair(snn.Leaky, beta=0.9, init_hidden=True, reset_mechanism="zero"),
        "Leaky, reset at once": lambda: pair(
            snn.Leaky, beta=0.8, init_hidden=True, reset_delay=False, threshold=0.7, reset_mechanism="zero"
        ),
        "Leaky, no leak": lambda: pair(snn.Leaky, beta=1.0, init_hidden=True),
        "Synaptic": lambda: pair(snn.Synaptic, alpha=0.6, beta=0.7, init_hidden=True),
        "RLeaky": lambda: nn.Sequential(nn.Linear(8, 6), snn.RLeaky(beta=0.8, linear_features=6, init_hidden=True)),
        "tutorial 5": Net,
        "convolution": lambda: nn.Sequential(*image, snn.Leaky(beta=0.9, init_hidden=True)),
    }


def spikingjelly_networks() -> dict[str, Callable[[], nn.Module]]:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    class Net(nn.Module):
        """Its convolutional tutorial, small, all steps at once."""

        def __init__(self) -> None:
            super().__init__()
            self.conv_fc = nn.Sequential(
                layer.Conv2d(1, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4),
                neuron.IFNode(surrogate_function=surrogate.ATan()), layer.MaxPool2d(2, 2), layer.Flatten(),
                layer.Linear(36, 6, bias=False), neuron.IFNode(surrogate_function=surrogate.ATan()),
            )  # fmt: skip
            functional.set_step_mode(self, "m")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv_fc(x)

    def pair(*nodes: nn.Module) -> nn.Module:
        return nn.Sequential(layer.Linear(8, 12), nodes[0], layer.Dropout(0.3), layer.Linear(12, 6), nodes[1])

    return {
        "LIFNode": lambda: pair(neuron.LIFNode(2.0), neuron.LIFNode(1.5)),
        "LIFNode, soft": lambda: pair(neuron.LIFNode(3.0, v_reset=None), neuron.LIFNode(2.0, False, v_reset=None)),
        "LIFNode, rest": lambda: pair(neuron.LIFNode(3.0, v_reset=-0.1), neuron.LIFNode(3.0, False, 0.8, 0.1)),
        "IFNode": lambda: pair(neuron.IFNode(0.5), neuron.IFNode(0.6, v_reset=None)),
        "ParametricLIFNode": lambda: pair(neuron.ParametricLIFNode(2.5), neuron.ParametricLIFNode(1.7, False)),
        "tutorial, all steps": Net,
    }


def norse_networks() -> dict[str, Callable[[], nn.Module]]:
    import norse.torch as norse

    box = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), v_th=torch.linspace(0.1, 0.4, 12))
    lif = norse.LIFParameters(v_th=torch.tensor(0.3))
    return {
        "LIFBoxCell": lambda: norse.SequentialState(nn.Linear(8, 12), norse.LIFBoxCell(box), nn.Linear(12, 6),
                                                    norse.LIFBoxCell(norse.LIFBoxParameters(v_th=torch.tensor(0.02)))),
        "LIFCell": lambda: norse.SequentialState(nn.Linear(8, 12), norse.LIFCell(lif), nn.Linear(12, 6),
                                                 norse.LICell()),
        "LIFRecurrentCell": lambda: norse.SequentialState(norse.LIFRecurrentCell(8, 12, lif), nn.Linear(12, 6)),
        "IAFCell": lambda: norse.SequentialState(nn.Linear(8, 6), norse.IAFCell()),
    }  # fmt: skip


TOOLS = {"snntorch": snntorch_networks, "spikingjelly": spikingjelly_networks, "norse": norse_networks}


def original(tool: str, net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(outputs [B,T,…], inputs [B,T,…])`` as the toolkit's own users call it."""
    net.eval()
    if tool == "snntorch":
        from snntorch import utils

        utils.reset(net)
        if type(net).__name__ == "Net":
            return net(x[:, 0])[0].transpose(0, 1), x[:, :1].expand_as(x)
        rows = [net(x[:, t]) for t in range(STEPS)]
        return torch.stack([r[0] if isinstance(r, tuple) else r for r in rows], 1), x
    if tool == "spikingjelly":
        from spikingjelly.activation_based import functional

        functional.reset_net(net)
        if type(net).__name__ == "Net":
            return net(x.transpose(0, 1)).transpose(0, 1), x
        return torch.stack([net(x[:, t]) for t in range(STEPS)], 1), x
    state, rows = None, []
    for t in range(STEPS):
        y, state = net(x[:, t], state)
        rows.append(y)
    return torch.stack(rows, 1), x


@pytest.mark.parametrize("tool", TOOLS)
def test_a_network_of_its_neurons_spikes_here_as_there(tool):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; nox -s rivals")
    for name, make in TOOLS[tool]().items():
        torch.manual_seed(3)
        net = make()
        for part in net.modules():
            if isinstance(part, nn.Linear):
                part.weight.data *= 3  # fresh weights of torch leave a second layer silent
        image = "convolution" in name or (tool == "spikingjelly" and "tutorial" in name)
        example = {"example": torch.rand(2, 1, 6, 6)} if image else {}
        model = convert(net, **example).model
        x = torch.rand(3, STEPS, *model.spec.input, generator=torch.Generator().manual_seed(4)) * 3
        with torch.no_grad():
            wanted, given = original(tool, net, x)
            found = model(given)
        rate = float((wanted != 0).float().mean())
        assert 0.02 < rate < 0.98 or name in ("LIFCell", "LIFRecurrentCell"), f"{name}: {rate:.3f} of the outputs not 0"
        if name in ("LIFCell", "LIFRecurrentCell"):  # membranes and currents come out
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(found, wanted), f"{name}: {float((found == wanted).float().mean()):.2%} agree"


def test_what_snntorch_has_beyond_is_refused_by_name():
    snn = pytest.importorskip("snntorch")
    for neuron in (snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True), snn.Lapicque(beta=0.5, init_hidden=True)):
        with pytest.raises(ConversionError, match=f"{type(neuron).__name__}.*no equal here"):
            convert(nn.Sequential(nn.Linear(3, 3), neuron))
