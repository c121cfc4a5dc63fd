"""Silent bytes at a loss: rescaling changes nothing, estimates and criteria mean what they say, goals are kept."""

from __future__ import annotations

import json
import math
from typing import Any

import attrs
import pytest
import torch

from fastsnn_convert.language.rebuild import bypass_neurons, with_biases
from fastsnn_core import build, create, load, save
from fastsnn_core.component import KINDS
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import converter
from fastsnn_integer.quantization import quantise
from fastsnn_text import attach, load_tokenizer
from fastsnn_tune import tune_to_loss
from fastsnn_tune.cli import main
from fastsnn_tune.criteria import BUILT_IN, criterion
from fastsnn_tune.levels import Setting
from fastsnn_tune.silent_bytes import LEVELS, Measured, SilentBytes, at_loss

TEXT = "A neuron keeps what it hears, leaks a little, and speaks only when it must. " * 40
SITES = ("attn_in", "attn_out", "ffn_in", "ffn_hidden")


def model(k: float = 6.0, sites: tuple[str, ...] = SITES) -> Any:
    torch.manual_seed(0)
    table = {"kind": "decoder", "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 257}
    spec: Any = converter().structure(table | {"attention": [{"kind": "softmax"}]}, KINDS["model"])
    spec = with_biases(attrs.evolve(spec, neuron=create("neuron", "adaptive_threshold", k=k), sites=sites), SITES)
    net = build(spec).eval()
    for name, p in net.named_parameters():
        if name.endswith((".bias", ".centre")):  # as balancing leaves them
            torch.nn.init.normal_(p, std=0.1)
    attach(net, load_tokenizer("byte"))
    return net


def windows(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 257, (8, 32), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", [c.name for c in BUILT_IN])
def test_rescaling_leaves_the_function(name: str) -> None:
    net, x = model(), windows()
    made = SilentBytes.of(net, criterion(name), x, quiet=True)
    with bypass_neurons(net), bypass_neurons(made.model):
        torch.testing.assert_close(made.model(x), net(x), atol=1e-4, rtol=1e-3)
    made.apply(None)  # biases were rescaled, too, and stay so
    with bypass_neurons(net), bypass_neurons(made.model):
        torch.testing.assert_close(made.model(x), net(x), atol=1e-4, rtol=1e-3)
    moved = not torch.equal(made.model.layers[0].feedforward.up.weight, net.layers[0].feedforward.up.weight)
    assert moved == (criterion(name).importance is not None or criterion(name).prepare is not None)


@torch.no_grad()
def test_silent_bytes_are_the_weights_that_are_not_read() -> None:
    from fastsnn_convert.language.reference_eval import HeldOutReference

    made = SilentBytes.of(model(), criterion("teal_shares"), windows(), quiet=True)
    with bypass_neurons(made.model):
        held = HeldOutReference.of(made.model, windows(2))
    setting = made.path()[len(made.path()) // 2]
    found = made.measure(setting, held)
    unread = total = 0.0
    for layer in made.model.layers:
        for site, readers in (
            (layer.attention.inner, (layer.attention.q, layer.attention.k, layer.attention.v)),
            (layer.attention.outer, (layer.attention.out,)),
            (layer.feedforward.inner, (layer.feedforward.gate, layer.feedforward.up)),
            (layer.feedforward.hidden, (layer.feedforward.down,)),
        ):
            seen: list[Any] = []
            handle = site.neuron.register_forward_hook(lambda _m, _a, out, to=seen: to.append(out[0].counts))
            made.model(held.tokens)
            handle.remove()
            size = sum(r.weight.numel() for r in readers)
            unread += float((seen[0] == 0).double().mean()) * size
            total += size
    assert found.silent_bytes == pytest.approx(unread / total, abs=1e-6)
    assert found.silent_bytes == pytest.approx(setting.silent_bytes, abs=0.05)
    assert found.kl == pytest.approx(setting.cost, rel=0.6)


def test_costs_rise_along_the_path_and_shares_by_cost_are_cheaper() -> None:
    paths = {}
    for name in ("teal", "teal_shares"):
        made = SilentBytes.of(model(), criterion(name), windows(), quiet=True)
        paths[name] = made.path()
        assert [s.cost for s in paths[name]] == sorted(s.cost for s in paths[name])
        ladders = [rows for kinds in made.ladders.values() for site in kinds.values() for rows in site]
        assert all(len(rows) == len(LEVELS) for rows in ladders)

    def cost(name: str, silent: float) -> float:
        return min(s.cost for s in paths[name] if s.silent_bytes >= silent)

    assert cost("teal_shares", 0.4) < cost("teal", 0.4)


@torch.no_grad()
def test_constants_make_up_for_the_mean_of_what_is_dropped() -> None:
    made = SilentBytes.of(model(), criterion("spon"), windows(), quiet=True)
    setting = max(made.path(), key=lambda s: s.silent_bytes)
    down = made.model.layers[0].feedforward.down
    before = down.bias.clone()
    made.apply(setting)
    assert not torch.equal(down.bias, before)
    made.apply(None)
    assert torch.equal(down.bias, before)


@torch.no_grad()
def test_an_absolute_threshold_silences_quiet_tokens_and_costs_what_is_estimated() -> None:
    made = SilentBytes.of(model(), criterion("ours"), windows(), quiet=True)
    path = "layers.1.feedforward.hidden"
    assert len(made.ladders[4.0]["layers.1.feedforward.inner"]) == 1  # the first token is not to be silenced
    relative, absolute = made.ladders[4.0][path]
    assert {level.least for level in relative} == {0.0}
    least = absolute[8].least
    neuron: Any = made.ports[path].site.neuron
    for kind in (relative, absolute):
        level = kind[8]
        neuron.dial_("k", made.k[path] * 4.0)
        neuron.dial_("v_min", level.least / float(neuron.k))
        neuron.dial_("dead_zone", level.zone * float(neuron.k))
        y = torch.randn(1, 200, 85, generator=torch.Generator().manual_seed(3))[..., : made.ports[path].site.features]
        y = y * torch.linspace(0.02, 2.0, 200)[None, :, None] * least / 2
        silent = (neuron(y)[0].counts == 0).float().mean(-1)[0]
        assert (silent[:50].mean() > silent[150:].mean() + 0.2) == (level.least > 0)
        limit = level.zone * y.abs().mean(-1, keepdim=True).clamp_min(level.least)
        assert torch.equal(neuron(y)[0].counts == 0, (y.abs() < limit) | (neuron(y)[0].scale > 2 * y.abs()))


def test_the_search_goes_on_between_what_was_measured() -> None:
    """An estimate that misses by the same factor on both sides is no reason to stop far from the loss."""
    path = [Setting({}, {}, 1.0, i / 100, 1e-4 * i**2) for i in range(1, 80)]
    measured: list[float] = []

    class Bent:
        def path(self) -> list[Setting]:
            return path

        def measure(self, setting: Setting, _held: Any) -> Measured:
            measured.append(setting.silent_bytes)
            loss = 0.35 * setting.cost if setting.cost < 0.1 else 1.2 * setting.cost  # cheap first, then dear
            return Measured(setting.silent_bytes, 1.0, math.exp(loss), None, loss, setting.cost)

    found = at_loss(Bent(), None, 0.05, [], tries=6)  # type: ignore[arg-type]
    assert found is not None
    assert found[0].silent_bytes >= 0.27
    assert len(set(measured)) == len(measured)


def test_a_loss_is_kept_and_the_bundle_keeps_its_constants(tmp_path: Any) -> None:
    net = model(k=12.0)
    tuned = tune_to_loss(net, TEXT, losses=(0.01, 0.5), seq_len=32, windows=16, quiet=True)
    one, half = tuned.at["0.01"], tuned.at["0.5"]
    assert half is not None
    if one is not None:
        assert one.silent_bytes <= half.silent_bytes
    assert 0.3 < half.silent_bytes < 1
    again, x = load(save(tuned.model, tmp_path / "a.snn")), windows()
    assert torch.equal(again(x), tuned.model(x))
    assert not any(getattr(s.neuron, "sparser", False) for s in (net.layers[0].attention.inner,))
    assert again.meta["milestones"][-1]["criterion"] == "ours"
    curve = again.meta["milestones"][-1]["curve"]
    assert (curve["chosen"] in curve["points"]) == (one is not None)
    assert [m.silent_bytes for m in tuned.curve] == [x for x, _ in curve["points"]]
    assert all(p.requires_grad for p in tuned.model.parameters())  # it can be healed


def test_sites_that_are_not_tuned_are_saved_with_the_others(tmp_path: Any) -> None:
    net = model(12.0, (*SITES, "head"))
    tuned = tune_to_loss(net, TEXT, losses=(0.5,), seq_len=32, windows=16, quiet=True).model
    again, x = load(save(tuned, tmp_path / "a.snn")), windows()
    assert torch.equal(again(x), tuned(x))
    assert float(tuned.head_site.neuron.dead_zone) == 0 < float(tuned.layers[0].attention.inner.neuron.dead_zone)


def test_what_was_frozen_stays_frozen() -> None:
    net = model(k=12.0)
    net.embed.requires_grad_(False)
    tuned = tune_to_loss(net, TEXT, losses=(0.5,), seq_len=32, windows=16, quiet=True).model
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tuned.named_parameters()} - {"embed.weight"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"losses": (0.0,)}, "above 0"),
        ({"losses": (1.5,)}, "up to 1"),
        ({"criterion": "tael"}, "did you mean 'teal'"),
        ({"seq_len": 4096}, "tokens; at least"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(FastSNNError, match=says):
        tune_to_loss(model(), TEXT, quiet=True, **options)


def test_models_without_dead_zones_are_refused() -> None:
    with pytest.raises(FastSNNError, match="fastsnn export --to w8a"):
        tune_to_loss(quantise(model()), TEXT, quiet=True)
    table = {"kind": "decoder", "d_model": 16, "n_layers": 1, "n_heads": 2, "neuron": "ilif"}
    net = build(converter().structure(table, KINDS["model"]))
    attach(net, load_tokenizer("byte"))
    with pytest.raises(FastSNNError, match="no dead zone"):
        tune_to_loss(net, TEXT, quiet=True)


def test_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save(model(k=12.0), "m.snn")
    (tmp_path / "t.txt").write_text(TEXT)
    argv = ["m.snn", "--text", "t.txt", "--loss", "0.1,0.5", "--seq-len", "32", "--windows", "8", "--quiet"]
    assert main([*argv, "--to", "o.snn"]) == 0
    out = capsys.readouterr().out
    assert "silent bytes" in out
    assert "wrote o.snn" in out
    data = json.loads((tmp_path / "m.tune" / "tune.json").read_text())
    assert set(data["at"]) == {"0.1", "0.5"}
    assert (tmp_path / "m.tune" / "tune.png").read_bytes()[:4] == b"\x89PNG"
    for bad, says in ((["--loss", "one"], "give numbers"), (["--loss", "0.1", "--to", "m.snn"], "read from")):
        with pytest.raises(FastSNNError, match=says):
            main(["m.snn", "--text", "t.txt", *bad])
