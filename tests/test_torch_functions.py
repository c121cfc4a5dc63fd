"""What torch offers around a model (torch.func, compilers, wrappers, devices) works as for a module, or is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from fastsnn_core import SpikeTensor
from fastsnn_core.errors import FastSNNError

pytest.importorskip("fastsnn")
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch: vmap calls us once per sample
IDS = torch.arange(24).reshape(2, 12) % 200
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def networks(name: str, **more: Any) -> Any:
    from fastsnn import FastSNN

    torch.manual_seed(0)
    if name == "conv":
        return FastSNN.build(arch="snn-conv", input=(1, 8, 8), classes=3).eval()
    size = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 48, "vocab_size": 257}
    return FastSNN.build(**size, neuron=name, **more).eval()


NAMES = ("lif_sint", "adaptive_threshold", "conv")


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Any, torch.Tensor]:
    return networks(request.param), IMAGES if request.param == "conv" else IDS


def loss_of(model: Any, x: torch.Tensor) -> Any:
    return lambda p: functional_call(model, p, (x,)).double().square().sum()


def test_torch_func_gives_the_gradient_of_backward(case: Any) -> None:
    model, x = case[0].double(), case[1] if case[1] is IDS else case[1].double()
    p = {name: w.detach() for name, w in model.named_parameters()}
    model(x).double().square().sum().backward()
    for found in (
        torch.func.grad(loss_of(model, x))(p),
        torch.func.vjp(loss_of(model, x), p)[1](torch.tensor(1.0))[0],
        torch.func.jacrev(loss_of(model, x))(p),
    ):
        for name, w in model.named_parameters():
            torch.testing.assert_close(found[name], w.grad if w.grad is not None else torch.zeros_like(w))


def test_gradients_of_every_sample() -> None:
    model = networks("conv")
    p = {name: w.detach() for name, w in model.named_parameters()}
    each = torch.func.vmap(torch.func.grad(lambda p, a: loss_of(model, a[None])(p)), (None, 0))(p, IMAGES)
    for i in range(len(IMAGES)):
        alone = torch.func.grad(loss_of(model, IMAGES[i : i + 1]))(p)
        for name in p:
            torch.testing.assert_close(each[name][i], alone[name])


def test_several_models_at_once() -> None:
    models = [networks("conv"), networks("conv")]
    with torch.no_grad():
        next(models[1].parameters()).mul_(1.5)
    p, b = torch.func.stack_module_state(models)
    found = torch.vmap(lambda p, b: functional_call(models[0], (p, b), (IMAGES,)))(p, b)
    torch.testing.assert_close(found, torch.stack([m(IMAGES) for m in models]))


def test_what_torch_func_cannot_do_is_said_in_words(case: Any) -> None:
    model, x = case
    p = {name: w.detach() for name, w in model.named_parameters()}
    if x is IDS:
        grads = torch.vmap(torch.func.grad(lambda p, a: loss_of(model, a[None])(p)), (None, 0))
        for call in (lambda: torch.vmap(lambda a: model(a[None]))(x), lambda: grads(p, x)):
            with pytest.raises(FastSNNError, match=r"torch\.vmap over the tokens .* one call of torch\.func\.grad"):
                call()
        with pytest.raises(FastSNNError, match=r"symbolic_trace does not read .* torch\.export"):
            torch.fx.symbolic_trace(model)
    if x is IMAGES:
        with pytest.raises(FastSNNError, match=r"no forward-mode derivative .* torch\.func\.vjp"):
            torch.func.jvp(loss_of(model, x), (p,), (p,))


@pytest.mark.parametrize("name", NAMES)
def test_made_without_memory_and_loaded(name: str) -> None:
    model, x = networks(name), IMAGES if name == "conv" else IDS
    with torch.device("meta"):
        other = networks(name)
    assert all(w.is_meta for w in other.parameters())
    other = other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    with torch.device("meta"):
        assert networks("lif_sint", attn="gla").embed.weight.is_meta


def averaged(model: Any) -> Any:
    found = torch.optim.swa_utils.AveragedModel(model)
    found.update_parameters(model)
    return found


WRAPPED: dict[str, Any] = {
    "torch.compile": lambda m, x: torch.compile(m, backend="eager")(x),
    "copy.copy": lambda m, x: copy.copy(m)(x),
    "share_memory": lambda m, x: m.share_memory()(x),
    "DataParallel": lambda m, x: nn.DataParallel(m)(x),
    "Sequential": lambda m, x: nn.Sequential(m)(x),
    "AveragedModel": lambda m, x: averaged(m)(x),
    "checkpoint": lambda m, x: torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False),
    "export": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "assign": lambda m, x: (m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True), m(x))[1],
    "apply": lambda m, x: m.apply(lambda part: None)(x),
    "functional_call": lambda m, x: functional_call(m, dict(m.named_parameters()), (x,)),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of exporting and compiling
@pytest.mark.parametrize("way", WRAPPED)
def test_wrapped_models_compute_the_same(way: str, case: Any) -> None:
    model, x = case
    wanted = model(x)
    torch.testing.assert_close(WRAPPED[way](model, x), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm", "prune", "autocast", "anomaly"])
def test_what_changes_a_model_leaves_it_trainable(way: str, case: Any) -> None:
    model, x = case
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    if way == "prune":
        prune.l1_unstructured(layer, "weight", 0.5)
    elif way.endswith("norm"):
        getattr(nn.utils.parametrizations, way)(layer)
    with torch.autocast("cpu", enabled=way == "autocast"), torch.autograd.set_detect_anomaly(way == "anomaly"):
        model.train()(x).float().sum().backward()
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_spikes_and_models_say_that_a_device_is_missing() -> None:
    spikes, model = SpikeTensor(torch.ones(2, 3), torch.tensor(0.5)), networks("lif_sint")
    for move in ("cuda", "xpu", "ipu", "pin_memory"):
        with pytest.raises(FastSNNError, match="spikes cannot go there: "):
            getattr(spikes, move)()
    for device in ("cuda", "mps", "gpu", torch.device("cuda:1")):
        with pytest.raises(FastSNNError, match="spikes cannot go there: "):
            spikes.to(device)
    for move in ("xpu", "ipu"):
        with pytest.raises(FastSNNError, match=f"no device '{move}' here .*; devices: cpu"):
            getattr(model, move)()


def test_spikes_become_tensors_wherever_torch_asks_for_one() -> None:
    spikes = SpikeTensor(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor(0.5))
    for made in (torch.tensor(spikes), torch.as_tensor(spikes), torch.from_dlpack(spikes), torch.asarray(spikes)):
        assert torch.equal(made, spikes.value())


def test_transforms_that_refuse_spikes_take_their_value() -> None:
    """They look for `Tensor` before they ask an argument anything: an error and never other numbers."""
    spikes = SpikeTensor(torch.tensor([[1.0, 2.0], [0.0, -3.0]]), torch.tensor([[0.5], [0.25]]))
    for transform in (torch.vmap, torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises((ValueError, RuntimeError), match="SpikeTensor"):
            transform(torch.sum)(spikes)
    assert torch.vmap(torch.sum)(spikes.value()).tolist() == [1.5, -0.75]
    inside = torch.func.grad(lambda x: (SpikeTensor(x, spikes.scale) * x).sum())(spikes.counts)
    assert torch.equal(inside, 2 * spikes.value())
