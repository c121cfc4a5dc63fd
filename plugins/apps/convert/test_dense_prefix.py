"""A site alone is measured from its block on: what is in front of it is dense, and known."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from fastsnn_convert.language import convert as conversion
from fastsnn_convert.language.dense_prefix import dense_streams, given
from fastsnn_convert.language.rebuild import bypass_neurons, site_table, with_biases
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_core import build, create
from fastsnn_core.component import KINDS
from fastsnn_core.spec import converter

SITES = ("attn_in", "attn_out", "ffn_in", "ffn_hidden")


def model() -> Any:
    torch.manual_seed(0)
    table = {"kind": "decoder", "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97}
    spec: Any = converter().structure(table, KINDS["model"])
    spec = with_biases(attrs.evolve(spec, neuron=create("neuron", "adaptive_threshold", k=3.0)), SITES)
    return build(spec).eval()


@torch.no_grad()
def test_a_site_alone_costs_what_the_whole_pass_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dense_prefix", "reference_eval"):  # a text is read in pieces
        monkeypatch.setattr(f"fastsnn_convert.language.{module}.PIECE", 32)
    net, x = model(), torch.randint(0, 97, (3, 32), generator=torch.Generator().manual_seed(2))
    with bypass_neurons(net):
        held = HeldOutReference.of(net, x)
    at = {path: site for path, (_, site) in site_table(net).items() if site.neuron is not None}
    before = dense_streams(net, x, list(at))
    for name, site in at.items():
        with bypass_neurons(net, [site]):
            wanted = held.compare(net)[0]
            with given(net, before, name):
                found = held.compare(net)[0]
        assert wanted > 0
        assert found == pytest.approx(wanted, rel=1e-5), name
    assert not any("forward" in layer.__dict__ or layer._forward_pre_hooks for layer in net.layers)


def test_a_large_model_writes_short_pieces_to_calibrate_on(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote: list[int] = []

    def write(_model: Any, streams: int, length: int, **_: Any) -> torch.Tensor:
        wrote.append(length)
        return torch.zeros(streams, length, dtype=torch.long)

    monkeypatch.setattr(conversion, "sample_text", write)
    options = conversion.Options(windows=2, quiet=True)
    conversion.calibration_windows(model(), options)
    monkeypatch.setattr(conversion, "LARGE", 1)
    conversion.calibration_windows(model(), options)
    conversion.calibration_windows(model(), attrs.evolve(options, window=64))
    assert wrote == [options.window, 128, 64]
