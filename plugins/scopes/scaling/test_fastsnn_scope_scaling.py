"""The conformance kit over this plugin, and what it says of spikes that can be counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastsnn_core import SpikeTensor
from fastsnn_core.probe import Record
from fastsnn_core.state import nbytes
from fastsnn_core.subject import Subject, observe
from fastsnn_core.testing import conformance
from fastsnn_scope_scaling import Scaling, binary_bytes, peak_bytes, slope, tick_text

test_scaling = conformance("scaling")


class Toy(nn.Module):
    """A stream whose state is every token so far (a cache), or their sum."""

    def __init__(self, cache: bool) -> None:
        super().__init__()
        self.cache = cache
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, state: Tensor | None = None, *, return_state: bool = False) -> object:
        x = tokens.float()
        if self.cache:
            state = x if state is None else torch.cat([state, x], 1)
        else:
            state = x.sum(1) if state is None else state + x.sum(1)
        return (x, state) if return_state else x


def subject(model: nn.Module, tokens: Tensor | None = None) -> Subject:
    spikes = SpikeTensor(torch.ones(1, 1))
    tokens = torch.arange(3)[None] if tokens is None else tokens
    return Subject(model, tokens, {"a": Record(torch.ones(1, 1), spikes, model)})


def test_state_bytes_of_a_cache_and_of_a_sum():
    grows = Scaling(lengths=(4, 8, 16), repeats=1).measure(subject(Toy(cache=True)))
    assert [r["state_bytes"] for r in grows["rows"]] == [16, 32, 64]  # four bytes a token
    assert grows["growth"]["state_bytes"] == pytest.approx(1.0)
    assert grows["constant_state"] is False
    assert grows["headline"][0] == ["state per stream", "64 B at T = 16, growing"]
    flat = Scaling(lengths=(4, 8), repeats=1).measure(subject(Toy(cache=False)))
    assert [r["state_bytes"] for r in flat["rows"]] == [4, 4]
    assert flat["constant_state"] is True
    assert flat["headline"][0] == ["state per stream", "4 B, constant"]


@pytest.mark.parametrize(("attention", "constant"), [("gla", True), ("sliding_window", True), ("softmax", False)])
def test_state_of_real_models(attention, constant):
    decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
    pytest.importorskip(f"fastsnn_attention_{attention}")
    from fastsnn_core import build, create

    options = {"window": 3} if attention == "sliding_window" else {}
    mixer = create("attention", attention, **options)
    model = build(decoder(vocab_size=17, d_model=16, n_layers=1, n_heads=2, attention=(mixer,))).eval()
    tokens = torch.arange(12)[None] % 17
    data = Scaling(lengths=(4, 12), repeats=1).measure(observe(model, tokens))
    with torch.no_grad():
        wanted = [nbytes(model(tokens[:, :n], return_state=True)[1]) for n in (4, 12)]
    assert [r["state_bytes"] for r in data["rows"]] == wanted
    assert data["constant_state"] is constant
    assert (wanted[0] == wanted[1]) is constant
    assert all(r["prefill_tokens_per_second"] > 0 and r["decode_seconds"] > 0 for r in data["rows"])


def test_peak_counts_what_is_alive_at_once_and_no_inputs():
    x = torch.zeros(1000)  # 4000 bytes that are the caller's

    def two_at_once() -> Tensor:
        a = x + 1
        b = a + 1
        del a
        return b + 1

    assert peak_bytes(two_at_once, torch.device("cpu"))[1] == 8000
    assert peak_bytes(lambda: x.view(10, 100), torch.device("cpu"))[1] == 0


def test_the_budget_leaves_lengths_out_and_names_them():
    data = Scaling(lengths=(4, 2**20), seconds=0.01, repeats=1).measure(subject(Toy(cache=True)))
    assert [r["tokens"] for r in data["rows"]] == [4]
    assert data["left_out"] == [2**20]
    assert data["notes"][-1].endswith(f"T = {2**20}.")


def test_what_does_not_stream_says_so():
    images = Scaling().measure(subject(nn.Identity(), torch.zeros(1, 3)))
    assert "language models only" in images["reason"]
    assert "does not take state=" in Scaling().measure(subject(nn.Identity()))["reason"]


def test_draws_and_formats():
    scope = Scaling(lengths=(4, 8), repeats=1)
    figure = Figure()
    scope.draw(json.loads(json.dumps(scope.measure(subject(Toy(cache=True))))), figure)
    figure.canvas.draw()
    assert len(figure.axes) == 4
    ticks = [text.get_text() for axis in figure.axes for text in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    assert len(ticks) > 16
    assert not [text for text in ticks if "e" in text]
    assert [tick_text(2.0**n) for n in (-2, 0, 9, 13)] == ["0.25", "1", "512", "8,192"]
    assert [binary_bytes(x) for x in (5, 2048, 3 * 2**20, 2**31)] == ["5 B", "2.0 KiB", "3.0 MiB", "2.00 GiB"]
    assert slope({"tokens": 4, "k": 1}, {"tokens": 4, "k": 2}, "k") is None
