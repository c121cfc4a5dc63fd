"""What a bundle could not hold is refused before it is written, by name; what only wraps or looks on is no obstacle."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from fastsnn import FastSNN
from fastsnn_core import bundle_checks, load
from fastsnn_core.errors import FastSNNError


def model(**changes):
    torch.manual_seed(0)
    return FastSNN.build(d_model=32, n_layers=1, n_heads=2, **changes).eval()


X = torch.arange(12)[None]
WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "data parallel": nn.DataParallel,
    "compiled, then parallel": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("to", ["snn", "w8a"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_is_written_as_the_one_inside(wrap, to, tmp_path):
    plain = model()
    wanted = load(FastSNN.export(plain, tmp_path / "plain.snn", to=to))(X)
    path = FastSNN.export(WRAPPERS[wrap](plain), tmp_path / "m.snn", to=to)
    assert torch.equal(load(path)(X), wanted)


def test_a_model_compiled_twice_is_a_function_and_refused(tmp_path):
    twice = torch.compile(torch.compile(model(), backend="eager"), backend="eager")
    with pytest.raises(FastSNNError, match=r"compiled function.*pass the model itself") as caught:
        FastSNN.export(twice, tmp_path / "m.snn")
    assert not isinstance(caught.value, TypeError)


@pytest.mark.parametrize("to", ["snn", "w8a"])
@pytest.mark.parametrize("place", ["", "layers.0.feedforward.down", "head_site"])
@pytest.mark.parametrize("sort", ["after", "before", "in place", "own forward", "everywhere"])
def test_hooks_that_change_numbers_are_refused(sort, place, to, tmp_path):
    m = model()
    part, handle = m.get_submodule(place), None
    if sort == "after":
        part.register_forward_hook(lambda _, args, out: out)  # it may return anything
    elif sort == "before":
        part.register_forward_pre_hook(lambda _, args: args)
    elif sort == "in place":
        m.get_submodule("norm").register_forward_hook(lambda _, args, out: out.mul_(2) and None)
        m.get_submodule("embed").register_forward_hook(lambda _, args, out: args[0].clamp_(0) and None)
    elif sort == "own forward":
        part.forward = lambda *args, **more: type(part).forward(part, *args, **more)
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda _, args, out: None)
    try:
        with pytest.raises(FastSNNError, match="forward"):
            FastSNN.export(m, tmp_path / "m.snn", to=to)
    finally:
        if handle is not None:
            handle.remove()
    assert not (tmp_path / "m.snn").exists()


@pytest.mark.parametrize("to", ["snn", "w8a"])
def test_hooks_that_look_on_are_left_out_and_stay(to, tmp_path):
    m, seen = model(), []
    m.layers[0].feedforward.down.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    m.layers[0].register_forward_pre_hook(lambda _, args, kwargs: seen.append(1), with_kwargs=True)
    m.train()
    path = FastSNN.export(m, tmp_path / "m.snn", to=to)
    assert all(part.training for part in m.modules())
    seen.clear()
    m.eval()(X)
    assert len(seen) == 2
    if to == "snn":
        assert torch.equal(load(path)(X), m(X))


def lora(m):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(m, peft.LoraConfig(r=2, target_modules=["down"]))


def bigger(m):
    m.embed = nn.Embedding(300, 32)
    return m


def deeper(m):
    m.layers.append(copy.deepcopy(m.layers[0]))
    return m


def extra(m):
    m.register_buffer("more", torch.zeros(2))
    return m


ALTERED = {
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.layers[0].feedforward.down) and m,
    "spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m.layers[0].feedforward.down) and m,
    "pruned": lambda m: torch.nn.utils.prune.l1_unstructured(m.layers[0].feedforward.down, "weight", 0.5) and m,
    "lora": lora,
    "another vocabulary": bigger,
    "one layer more": deeper,
    "a buffer of its own": extra,
}


@pytest.mark.parametrize("how", ALTERED)
def test_a_model_that_its_spec_does_not_build_is_refused(how, tmp_path):
    with pytest.raises(FastSNNError, match=r"spec|forward hook"):
        FastSNN.export(ALTERED[how](model()), tmp_path / "m.snn")
    assert not (tmp_path / "m.snn").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["embed.weight", "layers.0.attention.q.weight", "norm.weight"])
def test_weights_that_are_no_numbers_are_refused(name, value, tmp_path):
    m = model()
    m.get_parameter(name).data.view(-1)[3] = value
    with pytest.raises(FastSNNError, match=rf"{name} holds 1 of \d+ values"):
        FastSNN.export(m, tmp_path / "m.snn")


def test_the_spec_is_not_built_again_where_nothing_changed(tmp_path, monkeypatch):
    m = load(FastSNN.export(model(), tmp_path / "a.snn"))
    small = load(FastSNN.export(m, tmp_path / "b.snn", to="w8a"))
    copied = copy.deepcopy(m).bfloat16()
    monkeypatch.setattr(bundle_checks, "refuse_other_shapes", lambda *_: pytest.fail("built again"))
    for each in (m, small, copied):
        FastSNN.export(each, tmp_path / "c.snn")


def test_the_event_runtime_is_part_of_what_is_built(tmp_path):
    m = model()
    m.runtime("event", calibration=X)
    path = FastSNN.export(m, tmp_path / "m.snn")
    assert torch.equal(load(path)(X), m(X))
