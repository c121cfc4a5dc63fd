"""Rotations that weights take over: the function stays, the axes are the principal ones, and a bundle keeps them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from fastsnn_convert.language.rebuild import bypass_neurons, with_biases
from fastsnn_core import build, create, load, save
from fastsnn_core.component import KINDS
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import converter
from fastsnn_tune.criteria import criterion
from fastsnn_tune.rotation import fold_gains, moments, rotated
from fastsnn_tune.silent_bytes import SilentBytes, settled

SITES = ("attn_in", "attn_out", "ffn_in", "ffn_hidden")
TOKENS = torch.randint(0, 61, (6, 24), generator=torch.Generator().manual_seed(2))


def model(attention: str = "softmax", **more: Any) -> Any:
    torch.manual_seed(0)
    table = {"kind": "decoder", "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 61} | more
    spec: Any = converter().structure(table | {"attention": [{"kind": attention}]}, KINDS["model"])
    spec = with_biases(attrs.evolve(spec, neuron=create("neuron", "adaptive_threshold", k=6.0)), SITES)
    net = build(spec).eval()
    for name, p in net.named_parameters():
        if name.endswith((".bias", ".centre")):
            torch.nn.init.normal_(p, std=0.1)
        elif p.ndim == 1:  # gains
            torch.nn.init.uniform_(p, 0.5, 2.0)
    return net


@torch.no_grad()
@pytest.mark.parametrize(("attention", "more"), [("softmax", {}), ("softmax", {"tied": False}), ("gla", {})])
def test_the_function_stays(attention: str, more: dict[str, Any]) -> None:
    net, new = model(attention, **more), rotated(model(attention, **more), TOKENS)
    values = [a.layers[0].attention.v.weight for a in (net, new)]
    with bypass_neurons(net), bypass_neurons(new):
        torch.testing.assert_close(new(TOKENS), net(TOKENS), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(values[0].norm(dim=1), values[1].norm(dim=1), rtol=1e-3)
    assert new.spec.tied is False


@torch.no_grad()
def test_axes_are_principal() -> None:
    net = rotated(model(), TOKENS)
    seen = moments(net, TOKENS)
    stream = torch.stack([m.attention + m.feedforward for m in seen]).sum(0)
    mixed: list[torch.Tensor] = []
    handle = net.layers[0].attention.outer.register_forward_pre_hook(lambda _m, args: mixed.append(args[0]))
    with bypass_neurons(net):
        net(TOKENS)
    handle.remove()
    heads = mixed[0].unflatten(-1, (2, 2, 8)).flatten(0, 1).transpose(0, 1).flatten(1, 2)  # of a group: [G,n·share,K]
    for moment in (stream, *(m.values for m in seen), heads.mT @ heads):
        sizes = moment.diagonal(dim1=-2, dim2=-1)
        apart = (moment - torch.diag_embed(sizes)).abs().amax((-2, -1))
        assert (apart < 1e-3 * sizes.amax(-1)).all()
        assert (sizes.diff(dim=-1) > -1e-3 * sizes.amax(-1, keepdim=True)).all()  # ascending
    plain = model()
    fold_gains(plain)
    before = moments(plain, TOKENS)[0].values
    assert (before - torch.diag_embed(before.diagonal(dim1=-2, dim2=-1))).abs().max() > 0.05 * before.abs().max()


@torch.no_grad()
def test_a_bundle_keeps_what_larosa_made(tmp_path: Any) -> None:
    made = SilentBytes.of(model(), criterion("larosa"), TOKENS, quiet=True)
    tuned = settled(made, made.path()[-1])
    again = load(save(tuned, tmp_path / "a.snn"))
    assert torch.equal(again(TOKENS), tuned(TOKENS))
    assert again.head is not None


def test_what_has_axes_of_its_own_is_refused() -> None:
    with pytest.raises(FastSNNError, match="RMSNorm"):
        rotated(model(norm="layer"), TOKENS)
