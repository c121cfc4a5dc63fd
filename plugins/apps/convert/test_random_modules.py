"""Random torch modules against what conversion makes of them: as the user calls them, in memory, saved and loaded.

Every network is drawn from parts that change what a module computes without saying so in its class: hooks, subclasses,
in-place operations, shared modules and weights, keyword calls, half precision, computed weights, sizes from tensors.
With spikes so fine that they are numbers, the converted network is the original, or conversion says why it is not.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from fastsnn_convert import ConversionError, convert
from fastsnn_core import load

FINE = {"kind": "adaptive_threshold", "k": 1e4}
WIDTH = 6


class NormAct(nn.BatchNorm2d):
    """More than its base."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x)) * 1.5


class Named(nn.Conv2d):
    """Its base under another name."""


class Standardised(nn.Conv2d):
    """Weights that its forward computes."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Calls(nn.Module):
    """A convolution, called in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.scale = (
            how,
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.Parameter(torch.rand(WIDTH, 1, 1)),
        )
        self.act = nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.randn(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        how = self.how
        if how == "keyword":
            return F.relu(input=self.conv(input=x))
        if how == "in place":
            x = self.conv(x)
            x += self.shift
            return x.mul_(self.scale).relu_()
        if how == "in place under two names":
            y = self.conv(x)
            z = y
            z.add_(1.0)
            return self.act(y) + z
        if how == "in place before":
            x.clamp_(min=-1.0)
            return self.conv(x)
        if how == "twice":
            return self.conv(F.relu(self.conv(x)))
        if how == "weight read elsewhere":
            return self.conv(x) + self.conv.weight.mean()
        if how == "residual in place":
            y = self.act(x)
            return self.conv(y) + x
        if how == "size of a tensor":
            y = F.avg_pool2d(x, x.size(2))
            return self.conv(x) * torch.sigmoid(y.view(y.shape[0], -1, 1, 1))
        if how == "functional dropout":
            return F.dropout2d(self.conv(x), 0.5, self.training)
        return torch.cat([self.conv(x)[:, ::2], x[:, ::2]], dim=1) if how == "join" else self.conv(x)


CALLS = (
    "keyword", "in place", "in place under two names", "in place before", "twice", "weight read elsewhere",
    "residual in place", "size of a tensor", "functional dropout", "join",
)  # fmt: skip


class Residual(nn.Module):
    """x + f(x), in place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.clone())
        y += x
        return y


class Tied(nn.Module):
    """Two convolutions of one weight, a norm behind the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(self.norm(self.a(x)), 0.2, inplace=True))


LAYERS = {
    "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
    "named conv": lambda: Named(WIDTH, WIDTH, 3, padding=1, bias=False),
    "standardised": lambda: Standardised(WIDTH, WIDTH, 3, padding=1),
    "reflect": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1),
    "norm": lambda: nn.BatchNorm2d(WIDTH),
    "norm and more": lambda: NormAct(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "instance norm": lambda: nn.InstanceNorm2d(WIDTH),
    "relu": lambda: nn.ReLU(inplace=True),
    "elu": lambda: nn.ELU(0.7, inplace=True),
    "celu": lambda: nn.CELU(1.3),
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "softplus": lambda: nn.Softplus(2.0),
    "prelu": lambda: nn.PReLU(WIDTH),
    "max pool": lambda: nn.MaxPool2d(3, 1, 1),
    "ceil pool": lambda: nn.MaxPool2d(2, 1, 1, ceil_mode=True),
    "uncounted": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "dropout": lambda: nn.Dropout2d(0.3),
    "softmax": lambda: nn.Softmax(1),
    "tied": Tied,
} | {how: (lambda how=how: Calls(how)) for how in CALLS}
CHANGES = (
    "", "", "", "hook", "pre hook", "keyword hook", "recorder", "instance", "weight norm", "old weight norm",
    "spectral", "pruned", "compiled", "residual", "parallel",
)  # fmt: skip


def changed(module: nn.Module, change: str, kept: list) -> nn.Module:
    """The module with something that its class does not say."""
    weighted = type(module) in (nn.Conv2d, Named)
    if change == "hook":
        module.register_forward_hook(lambda m, i, o: o * 0.5 + 0.1)
    elif change == "pre hook":
        module.register_forward_pre_hook(lambda m, i: (i[0] * 0.7,))
    elif change == "keyword hook":
        module.register_forward_hook(lambda m, i, k, o: -o, with_kwargs=True)
    elif change == "recorder":
        module.register_forward_hook(lambda m, i, o: kept.append(o.detach().mean().item() if type(o) is Tensor else o))
    elif change == "instance" and isinstance(module, nn.ReLU):
        module.forward = lambda x: F.relu(x) * 3
    elif change == "weight norm" and weighted:
        parametrizations.weight_norm(module)
    elif change == "old weight norm" and weighted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            weight_norm(module)
    elif change == "spectral" and weighted:
        spectral_norm(module)
    elif change == "pruned" and weighted:
        prune.l1_unstructured(module, "weight", 0.4)
    elif change == "compiled":
        return torch.compile(module, backend="eager")
    elif change == "residual":
        return Residual(module)
    elif change == "parallel":
        return nn.DataParallel(module)
    return module


class Network(nn.Module):
    """Drawn layers, the first of them perhaps again at the end, and a linear head."""

    def __init__(self, layers: list[nn.Module], again: bool) -> None:
        super().__init__()
        self.stem, self.layers = (
            nn.Conv2d(2, WIDTH, 3, padding=1),
            nn.ModuleDict({f"n-{i}": m for i, m in enumerate(layers)}),
        )
        self.again, self.head = again, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers.values():
            x = layer(x)
        if self.again:
            x = self.layers["n-0"](x)
        return self.head(x.mean((2, 3)))


@st.composite
def networks(draw):
    parts = draw(st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.sampled_from(CHANGES)), min_size=1, max_size=4))
    return (
        parts,
        draw(st.booleans()),
        draw(st.sampled_from((torch.float32, torch.float32, torch.bfloat16, torch.float64))),
    )


def build(parts, again, dtype, kept):
    torch.manual_seed(0)
    model = Network([changed(LAYERS[name](), change, kept) for name, change in parts], again)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return model.to(dtype)


def check(parts, again, dtype, tmp_path) -> str:
    kept: list = []
    model = build(parts, again, dtype, kept)
    x = torch.randn(9, 2, 5, 5).to(dtype)
    before = x.clone()
    model.eval()
    with torch.no_grad():
        wanted = model(x.clone()).double()
    model.train()
    try:
        done = convert(model, calibration=x, neuron=FINE)
    except ConversionError as error:
        assert len(str(error)) > 30
        return f"refused: {error}"
    assert model.training
    assert torch.equal(x, before)
    assert not any(isinstance(value, torch.fx.Proxy) for value in kept)
    snn = done.model.eval()
    with torch.no_grad():
        y = snn(x).double()
    assert torch.equal(x, before)
    size = float((wanted - wanted.mean(0)).norm())
    far = float((y - wanted).norm()) / max(size, 0.05 * float(wanted.norm()), 1e-6)
    least = 0.15 if dtype == torch.bfloat16 else 0.01
    assert far < least, f"{far:.4f} off"
    figures = done.report["quality"]
    if figures["relative_to"] == "spread":
        assert figures["output_error"] == pytest.approx(float((y - wanted).norm()) / size, rel=0.02, abs=1e-6)
    if done.report["obstacles"]:
        with pytest.raises(ConversionError):
            done.save(tmp_path / "no.snn")
        return f"kept in memory: {done.report['obstacles'][0]}"
    with torch.no_grad():
        assert torch.equal(model.eval()(x.clone()).double(), wanted)  # the user's model is as it was
    done.save(tmp_path / "a.snn")
    with torch.no_grad():
        again_ = load(tmp_path / "a.snn").eval()(x).double()
    assert torch.equal(again_, y)
    return "saved"


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_by_itself(name, tmp_path):
    """All of them are converted, and saved, but for those that no spec can say."""
    assert check([(name, "")], False, torch.float32, tmp_path) == "saved"


@pytest.mark.parametrize("change", sorted(set(CHANGES) - {""}))
def test_every_change_by_itself(change, tmp_path):
    layer = "relu" if change == "instance" else "conv"
    assert check([(layer, change), ("norm", "")], True, torch.float32, tmp_path) == "saved"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(networks())
def test_random_networks(tmp_path, drawn):
    check(*drawn, tmp_path)


def test_a_lost_hook_would_be_seen(tmp_path, monkeypatch):
    """The planted fault: hooks that are dropped before tracing."""
    from fastsnn_convert.modules import prepare

    def dropped(module: nn.Module) -> nn.Module:
        module._forward_hooks.clear()
        return module

    monkeypatch.setattr(prepare, "hooks_outside", dropped)
    assert check([("conv", "hook")], False, torch.float32, tmp_path).startswith("refused: the traced network gives")
    from fastsnn_convert.modules import rule_engine, traced_check

    for module in (rule_engine, traced_check):
        monkeypatch.setattr(module, "check_same", lambda *args: None)
    with pytest.raises(AssertionError, match="off"):
        check([("conv", "hook")], False, torch.float32, tmp_path)
