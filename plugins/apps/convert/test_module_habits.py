"""Modules that are written in ways that conversion once took for others, failed on, or took without a word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert import ConversionError, convert
from fastsnn_core import load

FINE = {"kind": "adaptive_threshold", "k": 1e4}


class Twice(nn.MaxPool2d):
    """Its base, called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - super().forward(-x)


class Into(nn.Module):
    """An operation that is told where to write."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        torch.add(h, 1, out=h)
        return self.b(F.relu(h))


class SequenceFirst(nn.Module):
    """An encoder that works on [L, B, D] inside of a module that does not; its head perhaps, too."""

    def __init__(self, head: bool = False, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=norm_first)
        self.encoder, self.out, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(8, 3),
            head,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x.transpose(0, 1))
        return self.out(y).transpose(0, 1) if self.head else self.out(y.transpose(0, 1))


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.b = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.b(F.relu(self.a(left) + self.c(right)))


def repeated() -> nn.Module:
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    return nn.Sequential(block, block, block, nn.Linear(6, 3))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class OddNames(nn.Module):
    """Modules called by words of Python's own, by digits, by the names of weights."""

    def __init__(self) -> None:
        super().__init__()
        for name, module in (("weight", nn.Linear(6, 8)), ("lambda", nn.ReLU()), ("1-x", nn.Linear(8, 3))):
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "1-x")(getattr(self, "lambda")(self.weight(x)))


def inference_weights() -> nn.Module:
    with torch.inference_mode():
        model = mlp()
        model.append(nn.Linear(3, 3))
        model[-1].bias = model[-2].bias
    return model


def strided_weights() -> nn.Module:
    model = mlp()
    model[0].weight = nn.Parameter(torch.randn(6, 8).t())
    model[2].bias = nn.Parameter(torch.randn(1).expand(3))
    return model


SAME = {
    "modules named by keywords": (OddNames, (40, 6)),
    "weights made in inference mode": (inference_weights, (40, 6)),
    "weights that are views": (strided_weights, (40, 6)),
    "a block three times": (repeated, (40, 6)),
    "a base class twice": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), Twice(2), nn.Flatten(), nn.Linear(8, 3)),
        (40, 1, 6, 6),
    ),
    "out=": (Into, (40, 6)),
    "an encoder that has sequences first": (SequenceFirst, (40, 5, 8)),
    "the same with norms first": (lambda: SequenceFirst(norm_first=True), (40, 5, 8)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_converted_network_is_the_one_it_was(name, tmp_path):
    torch.manual_seed(0)
    make, shape = SAME[name]
    model, x = make().eval(), torch.randn(*shape)
    done = convert(model, calibration=x, neuron=FINE)
    with torch.no_grad():
        wanted, y = model(x), done.model.eval()(x)
        assert float((y - wanted).norm() / wanted.norm()) < 0.01
        done.save(tmp_path / "a.snn")
        again = load(tmp_path / "a.snn").eval()
        assert torch.equal(again(x), y)
        assert torch.equal(again(x[:7]), again(torch.cat([x[:7], x[:2]]))[:7])  # whatever the batch is


def test_inputs_by_name(tmp_path):
    data = {"left": torch.randn(40, 6), "right": torch.randn(40, 4)}
    done = convert(Two(), calibration=data)
    done.save(tmp_path / "a.snn")
    for snn in (done.model.eval(), load(tmp_path / "a.snn").eval()):
        wanted = snn(data["left"], data["right"])
        assert torch.equal(snn(**data), wanted)
        assert torch.equal(snn(data["left"], right=data["right"]), wanted)
        for wrong in ({"left": data["left"]}, data | {"rigth": data["left"]}):
            with pytest.raises(ValueError, match="the network's inputs are left, right; got left"):
                snn(**wrong)


def remembers() -> nn.Module:
    """Hooks that work together: one keeps what another adds."""
    model, store = mlp(), {}
    model[0].register_forward_hook(lambda m, i, o: store.__setitem__("h", o))
    model[2].register_forward_hook(lambda m, i, o: o + store["h"][..., :3])
    return model


def nan_weights() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].bias[1] = float("inf")
    return model


REFUSED = {
    "hooks with a memory": (remembers, (40, 6), "gives another output than Sequential"),
    "a program of torch.export": (
        lambda: torch.export.export(mlp(), (torch.randn(2, 6),)).module(),
        (40, 6),
        "torch.export",
    ),
    "a head over sequences first": (lambda: SequenceFirst(head=True), (40, 5, 8), "batch in dimension 1"),
    "infinite weights": (nan_weights, (40, 6), "2.bias holds 1 of 3 values that are NaN or infinite"),
    "no shapes yet": (lambda: nn.Sequential(nn.LazyLinear(3)), (40, 6), "has no shape yet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    make, shape, says = REFUSED[name]
    with pytest.raises(ConversionError, match=says):
        convert(make(), calibration=torch.randn(*shape))


def test_modules_are_called_as_before_where_tracing_was_cut_off(monkeypatch):
    """Ctrl-C while torch.fx puts its patches back left every module of the process to a tracer that was gone."""
    patcher, before = torch.fx._symbolic_trace._Patcher, (nn.Module.__call__, nn.Module.__getattr__)

    def cut_off(self):
        for patch in self.patches_made[2:]:  # the first two are those of nn.Module
            patch.revert()
        raise KeyboardInterrupt

    monkeypatch.setattr(patcher, "revert_all_patches", cut_off)
    with pytest.raises(KeyboardInterrupt):
        convert(Into(), calibration=torch.randn(4, 6), neuron=FINE)
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
    assert torch.fx._symbolic_trace.CURRENT_PATCHER is None
    assert nn.Linear(2, 3)(torch.ones(1, 2)).shape == (1, 3)
