"""The conformance kit over this plugin, and what it says of spikes that can be counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import SpikeSite, SpikeTensor
from fastsnn_core.subject import observe
from fastsnn_core.testing import conformance
from fastsnn_scope_energy import PJ, Energy, break_even_sparsity, energy_row, multiply, tally
from fastsnn_scope_energy.picture import amount

test_energy = conformance("energy")

A = [[[1, 0, 3, -2], [0, 0, 0, 5]]]  # set bits 1 + 2 + 1 and 2; magnitudes 6 and 5; three and one active
B = [[[1, 1, 0], [0, 0, 0]]]


class Fixed(nn.Module):
    """Says the same counts whatever it hears."""

    def __init__(self, counts: list[object]) -> None:
        super().__init__()
        self.counts = torch.tensor(counts, dtype=torch.float32)

    def forward(self, x: Tensor, state: object = None, reset: object = None) -> tuple[SpikeTensor, Tensor]:
        return SpikeTensor(self.counts * (2 * x / (2 * x + 1e-9)).round().clamp(1, 1), 0.5), self.counts[:, 0]


class Toy(nn.Module):
    """tokens [1,2] → 4 → site a → Linear 3 → site b → Linear 2 and a functional layer of 5; then an ordinary Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.a, self.b = SpikeSite(Fixed(A)), SpikeSite(Fixed(B))
        self.first, self.second, self.last = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(7, 6)
        self.extra = nn.Parameter(torch.randn(5, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        spikes, _ = self.a(self.embed(tokens))
        spikes, _ = self.b(self.first(spikes))
        return self.last(torch.cat([self.second(spikes), F.linear(spikes, self.extra)], -1))


@pytest.fixture
def toy():
    return observe(Toy(), torch.tensor([[1, 2]]))


def test_sops_equal_a_count_by_hand(toy):
    found = tally(toy)
    rows = {name: row for (name, _), row in found.layers.items()}
    assert {name: row.site for name, row in rows.items()} == {"first": "a", "second": "b", "extra": "b", "last": ""}
    first, second, extra, last = (rows[n] for n in ("first", "second", "extra", "last"))
    assert (first.sops, first.sops_unary, first.active_macs, first.macs) == (6 * 3, 11 * 3, 4 * 3, 8 * 3)
    assert (second.sops, second.macs, extra.sops, extra.macs) == (2 * 2, 6 * 2, 2 * 5, 6 * 5)
    assert (last.sops, last.macs) == (0, 2 * 7 * 6)
    assert (found.sites["a"].active, found.sites["a"].bits, found.sites["b"].bits) == (4, 4, 1)
    assert (found.tokens, found.embedded, found.attention_macs, found.products) == (2, 8, 0, 0)
    assert found.sites["a"].membrane_bytes == 16


def test_a_row_equals_a_sum_by_hand(toy):
    found, byte, buffer = tally(toy), PJ["sram_1mb"] / 8, PJ["sram_32kb"] / 8
    events = energy_row("events", found, "sram")["parts"]
    dense = 2 * 7 * 6 * (0.2 + 0.1)
    assert events["arithmetic"] * 2 == pytest.approx((18 + 4 + 10) * 0.1 + dense)
    assert events["weights"] * 2 == pytest.approx((4 * 3 + 2 * 2 + 2 * 5 + 2 * 7 * 6 + 8) * byte)
    assert events["spike making"] * 2 == pytest.approx((8 + 6) * 4.6 + 2 * 2 * (16 + 12) * buffer)
    matched = energy_row("matched", found, "sram")["parts"]
    assert matched["arithmetic"] * 2 == pytest.approx(24 * (0.2 * 4 / 8 + 0.1) + 42 * (0.2 / 8 + 0.1) + dense)
    assert matched["weights"] * 2 == pytest.approx((24 + 42 + 84 + 8) * byte)
    assert matched["spike making"] * 2 == pytest.approx((8 + 6) * 4.6)
    fp16 = energy_row("fp16", found, "dram")["parts"]
    assert fp16["weights"] * 2 == pytest.approx(2 * (24 + 42 + 84 + 8) * PJ["dram"] / 8)
    assert fp16["spike making"] == 0


def test_the_break_even_really_breaks_even(toy):
    found = tally(toy)
    base = energy_row("matched", found, "sram")["total"]
    at = break_even_sparsity(found, "sram", base)
    assert at is not None
    assert 0 < at < 1
    speak = (4 + 2) / 14
    assert energy_row("events", found, "sram", (1 - at) / speak)["total"] == pytest.approx(base)
    assert break_even_sparsity(found, "sram", 0.0) is None


def test_convolutions_count_every_connection():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = SpikeSite(Fixed(torch.randint(-2, 4, (1, 2, 5, 5)).tolist()))
            self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.site(x)[0])

    model = Net()
    found = tally(observe(model, torch.ones(1, 2, 5, 5)))
    counts = model.site.neuron.counts[0]
    wanted, macs = 0, 0
    for y in range(0, 5, 2):
        for x in range(0, 5, 2):
            for i in range(y - 1, y + 2):
                for j in range(x - 1, x + 2):
                    if 0 <= i < 5 and 0 <= j < 5:
                        wanted += 3 * sum(int(abs(c)).bit_count() for c in counts[:, i, j])
                        macs += 3 * 2
    (row,) = found.layers.values()
    assert (row.sops, row.macs, row.outputs, found.unit) == (wanted, macs, 3 * 9, "sample")


def test_flattened_spikes_are_still_spikes():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site, self.head = SpikeSite(Fixed(A)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.site(x)[0].flatten(1))

    found = tally(observe(Net(), torch.ones(1, 2, 4)))
    (row,) = found.layers.values()
    assert (row.site, row.sops, row.macs) == ("site", 18, 24)


def test_attention_counts_only_pairs_that_see_each_other():
    class Net(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            q = torch.zeros(1, 2, 3, 4)  # two heads, three tokens, width 4
            F.scaled_dot_product_attention(q, q, q, is_causal=True)
            band = torch.eye(3, dtype=torch.bool)
            F.scaled_dot_product_attention(q, q, q, attn_mask=band)
            return q[0] @ q[0].transpose(1, 2) * 2.0

    found = tally(observe(Net(), torch.zeros(1, 3, dtype=torch.long)))
    assert found.attention_macs == 2 * 6 * 8 + 2 * 3 * 8 + 2 * 3 * 3 * 4
    assert found.products == 2 * 3 * 3


def test_a_layer_with_its_own_kernel_is_counted_once():
    class Quantised(nn.Module):
        in_features, out_features = 4, 3

        def forward(self, spikes: SpikeTensor) -> Tensor:
            return F.linear(spikes.counts, torch.ones(3, 4)) * 1.0

    model = nn.ModuleDict({"q": Quantised()})
    site = SpikeSite(Fixed(A))
    model.forward = lambda tokens: model["q"](site(tokens[..., None].float().expand(1, 2, 4))[0])
    model.add_module("site", site)
    found = tally(observe(model, torch.tensor([[1, 2]])))
    (row,) = found.layers.values()
    assert (row.name, row.site, row.sops, row.macs, found.products) == ("q", "site", 18, 24, 0)


def test_a_real_decoder_counts_every_reader_of_a_site():
    decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
    from fastsnn_core import build

    model = build(decoder(vocab_size=17, d_model=16, n_layers=2, n_heads=2)).eval()
    found = tally(observe(model, torch.arange(6)[None]))
    readers: dict[str, set[str]] = {}
    for name, site in found.layers:
        readers.setdefault(site, set()).add(name.rpartition(".")[2])
    assert readers["layers.0.attention.inner"] == {"q", "k", "v", "gate_down"}
    assert readers["layers.1.feedforward.inner"] == {"gate", "up"}
    assert readers[""] == {"gate_up", "embed"}
    for (_, site), row in found.layers.items():
        if site:
            assert row.sops == found.sites[site].spikes * row.outputs // 6
    assert found.attention_macs > 0
    assert found.state_bytes > 0


def test_data_draws_again_from_json(toy):
    data = json.loads(json.dumps(Energy().measure(toy), allow_nan=False))
    assert [r["kind"] for r in data["rows"]] == ["events", "counts", "matched", "int8", "fp16"]
    assert data["rows"][2]["ratio"] == 1.0
    figure = Figure()
    Energy().draw(data, figure)
    figure.canvas.draw()
    assert len(figure.axes) == 2
    assert all(len(t["columns"]) == len(row) for t in data["tables"] for row in t["rows"])
    assert Energy().measure(observe(nn.Identity(), torch.zeros(1, 2))) == {"reason": "the model makes no spikes"}
    assert multiply(8, "int8_add") == pytest.approx(PJ["int8_mac"])
    assert [amount(x) for x in (1.5, 2500, 3e6, 4e9)] == ["1.5 pJ", "2.5 nJ", "3 µJ", "4 mJ"]


def test_constants_stand_in_one_table_with_their_sources():
    from fastsnn_scope_energy import CONSTANTS, constants_table

    table = constants_table()
    assert len(table["rows"]) == len(CONSTANTS) == len(PJ)
    assert all(source for *_, source in table["rows"])
    for kind in ("fp32", "fp16", "int8"):
        assert PJ[f"{kind}_mac"] == pytest.approx(PJ[f"{kind}_mul"] + PJ[f"{kind}_add"])


def test_caches_are_read_as_far_as_they_are_filled():
    from fastsnn_core import build, create

    table = {"d_model": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 17}
    window = create("attention", "sliding_window", window=101)
    model = build(create("model", "decoder", attention=(window,), **table)).eval()
    found = tally(observe(model, torch.arange(10)[None]))
    assert found.state_bytes == 10 * (2 * 16 * 4 + 1) + 8  # keys and values in float32, whether valid; the position
