"""ReLU gates from SiLU gates while a model is healed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_language import FAST, TEXT, folder  # noqa: F401

from fastsnn_convert import ConversionError, convert
from fastsnn_convert.language.distillation import heal
from fastsnn_core import load, save

SHORT: dict[str, Any] = {"batch": 2, "length": 16, "log": 1, "quiet": True, "hidden": 0.0, "lr": 3e-3}


def shut(model: Any, tokens: torch.Tensor) -> float:
    """Share of hidden channels that are exactly zero."""
    zero: list[float] = []
    handles = [
        layer.feedforward.hidden.register_forward_pre_hook(
            lambda _m, args: zero.append(float((args[0] == 0).float().mean()))
        )
        for layer in model.layers
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return sum(zero) / len(zero)


@pytest.mark.parametrize(("name", "least"), [("relu", 0.2), ("drelu", 0.5)])
def test_gates_become_relu_and_the_bundle_says_so(folder, tmp_path, name, least):  # noqa: F811
    model = convert(folder, k=3.0, measure=False, calibration=[TEXT], **FAST).model
    tokens = torch.randint(0, model.spec.vocab_size, (1, 24), generator=torch.Generator().manual_seed(0))
    assert shut(model, tokens) < 0.01
    log = heal(model, folder, [TEXT], steps=12, activation=name, l1=0.05, **SHORT | {"log": 50})
    assert [row["step"] for row in log] == [1, 12]
    assert model.spec.feedforward.activation == name
    assert all(layer.feedforward.toward is None for layer in model.layers)
    assert shut(model, tokens) > least
    again = load(save(model, tmp_path / "relu.snn"))
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_l1_makes_hidden_channels_smaller(folder, checkpointing):  # noqa: F811
    sizes = []
    for l1 in (0.0, 20.0):
        model = convert(folder, k=3.0, measure=False, calibration=[TEXT], **FAST).model
        heal(model, folder, [TEXT], steps=15, activation="relu", l1=l1, checkpointing=checkpointing, **SHORT)
        seen: list[float] = []
        for layer in model.layers:
            layer.feedforward.hidden.register_forward_pre_hook(
                lambda _m, a, to=seen: to.append(float(a[0].abs().mean()))
            )
        with torch.no_grad():
            model(torch.arange(24)[None] % model.spec.vocab_size)
        sizes.append(sum(seen))
    assert sizes[1] < 0.9 * sizes[0]


def test_an_unknown_activation_is_refused_and_an_interrupt_leaves_none_half_way(folder):  # noqa: F811
    model = convert(folder, k=3.0, measure=False, calibration=[TEXT], **FAST).model
    with pytest.raises(ConversionError, match="no activation 'swish'; they can be silu, gelu"):
        heal(model, folder, [TEXT], steps=2, activation="swish", **SHORT)
    with pytest.raises(ConversionError, match="l1 is a weight of 0 or more"):
        heal(model, folder, [TEXT], steps=2, activation="relu", **SHORT | {"l1": -1.0})
    calls = []

    def cut(_m: Any, _a: Any) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt

    handle = model.head_site.register_forward_pre_hook(cut)
    with pytest.raises(KeyboardInterrupt):
        heal(model, folder, [TEXT], steps=9, activation="relu", **SHORT)
    handle.remove()
    assert model.spec.feedforward.activation == "silu"
    assert all(layer.feedforward.toward is None for layer in model.layers)
