"""Dials that are found, paths in order of price, targets that are met, and bundles that keep their constants."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastsnn_core import SpikeSite, build, create, load, save
from fastsnn_core.component import KINDS
from fastsnn_core.site import sites
from fastsnn_core.spec import converter
from fastsnn_integer.quantization import quantise
from fastsnn_text import attach, load_tokenizer
from fastsnn_tune import dial_path, tune
from fastsnn_tune.cli import main
from fastsnn_tune.dial import DialSetting, dial_settings, set_dials, silent_channels, value_of, values_for
from fastsnn_tune.dial_order import DialStep, by_price, costs, merged_ladder
from fastsnn_tune.dial_path import DialPath, better, least_passing, stopping_place
from fastsnn_tune.search import tuning_windows

TEXT = "A neuron keeps what it hears, leaks a little, and speaks only when it must. " * 12
SMALL = {"seq_len": 32, "calibration_tokens": 128, "held_out_tokens": 96, "points": 3, "decode_tokens": 0}


def model(neuron=None, **changes):
    torch.manual_seed(0)
    table = {"kind": "decoder", "d_model": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 257} | changes
    if neuron:
        table["neuron"] = neuron
    net = build(converter().structure(table, KINDS["model"])).eval()
    attach(net, load_tokenizer("byte"))
    return net


def quick(net, **goal):
    return tune(net, TEXT, **(SMALL | goal))


@pytest.mark.parametrize(
    ("neuron", "dial"),
    [
        ("adaptive_threshold", "dead_zone"),
        ("adaptive_threshold", "k"),
        ("adaptive_threshold", "top"),
        ("lif_sint", "theta"),
        ("ilif", "theta"),
    ],
)
@pytest.mark.parametrize("fraction", [0.6, 0.9])
def test_a_dial_is_the_least_that_reaches(neuron, dial, fraction):
    torch.manual_seed(0)
    site, x = SpikeSite(create("neuron", neuron).build(64)), torch.randn(1, 50, 64)
    group, names, before = {"a": site}, {"a": dial}, value_of(site, dial)
    already = silent_channels(site, x) / x.numel()
    values = values_for(group, names, {"a": x}, fraction)
    assert value_of(site, dial) == before
    set_dials(group, names, values)
    reached = silent_channels(site, x) / x.numel()
    assert fraction <= reached <= max(already, fraction + 0.02)


def test_sites_turned_together_share_an_amount():
    torch.manual_seed(0)
    group = {n: SpikeSite(create("neuron", "adaptive_threshold").build(64)) for n in "ab"}
    xs = {"a": torch.randn(1, 50, 64), "b": torch.randn(1, 50, 64) ** 3}
    values = values_for(group, dict.fromkeys("ab", "dead_zone"), xs, 0.7)
    assert values["a"] == values["b"]
    set_dials(group, dict.fromkeys("ab", "dead_zone"), values)
    silent = {n: silent_channels(site, xs[n]) / 3200 for n, site in group.items()}
    assert abs(sum(silent.values()) / 2 - 0.7) < 0.01
    assert abs(silent["a"] - silent["b"]) > 0.05


def test_paths_take_the_cheapest_first_and_keep_the_order_of_a_site():
    a = [DialStep("a", 1, 0.1, 0.1), DialStep("a", 2, 0.4, 0.1)]
    b = [DialStep("b", 1, 0.3, 0.1), DialStep("b", 2, 0.1, 0.1)]  # its second step is cheaper: both are one
    assert merged_ladder(b) == [b]
    assert [(s.site, s.value) for s in by_price([a, b])] == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert least_passing(5, lambda n: n >= 3) == 3
    assert least_passing(5, lambda n: n >= 6) is None
    assert least_passing(5, lambda n: True) == 0


def test_the_better_path_is_taken():
    cheap = DialPath(None, {}, None, [{}] * 5, {n: (0.1 * n, 0.2 * n) for n in range(5)})
    dear = DialPath(None, {}, None, [{}] * 5, {n: (0.2 * n, 0.2 * n) for n in range(5)})
    short = DialPath(None, {}, None, [{}] * 2, {n: (0.0, 0.2 * n) for n in range(2)})
    assert better([dear, cheap, short], 0.6, None) == (cheap, 3)
    assert better([dear, cheap], None, 1.25) == (cheap, 2)
    assert better([dear, cheap], None, None) == (cheap, 0)
    with pytest.raises(ValueError, match=r"out of reach; these dials go to 0\.800"):
        better([dear, short], 0.9, None)


def test_costs_between_measurements_follow_the_error():
    rows = [DialSetting(0.1 * i, 0.1 * i, float(i * i)) for i in range(6)]
    assert costs(rows, {}) == [0.0] * 6
    assert costs(rows, {5: 2.5}) == pytest.approx([0.0, 0.1, 0.4, 0.9, 1.6, 2.5])
    found = costs(rows, {2: -0.01, 4: 3.2})  # noise below nothing: the ratio of both together
    assert found == sorted(found)
    assert found[4] == pytest.approx(3.2)
    assert found[1] == pytest.approx(3.2 / 20)


def test_notches_rise_and_leave_the_dial_alone():
    torch.manual_seed(0)
    site, x = SpikeSite(create("neuron", "adaptive_threshold").build(64)), torch.randn(2, 50, 64)
    for dial in ("dead_zone", "k", "top"):
        before = value_of(site, dial)
        rows = dial_settings(site, dial, x)
        assert value_of(site, dial) == before
        assert rows[0].error == 0.0
        assert [r.silent for r in rows] == sorted(r.silent for r in rows)
        assert rows[-1].silent > 0.9
        assert rows[-1].error > rows[1].error > 0


def test_a_silent_fraction_is_reached_and_kept(tmp_path):
    net = model()
    tuned = quick(net, silent=0.5, decode_tokens=2)
    assert 0.45 <= tuned.after.silent_fraction <= 0.75
    assert tuned.before.silent_fraction < 0.3
    assert [p.silent_fraction for p in tuned.curve] == sorted(p.silent_fraction for p in tuned.curve)
    assert tuned.after.tokens_per_second > 0
    assert tuned.after.tokens_per_second_w8a > 0
    assert value_of(sites(net)["layers.0.attention.inner"], "dead_zone") == 0.0, "the model given is left as it was"
    again, tokens = load(save(tuned.model, tmp_path / "a.snn")), torch.randint(0, 257, (1, 9))
    assert torch.equal(again(tokens), tuned.model(tokens))
    assert not torch.equal(again(tokens), net(tokens))
    zones = {n: value_of(s, "dead_zone") for n, s in sites(again).items()}
    assert {n: row["after"] for n, row in tuned.dials.items()} == zones
    assert again.spec.neuron.dead_zone == max(zones.values())
    assert again.meta["milestones"][-1]["what"] == "tune"
    curve = again.meta["milestones"][-1]["curve"]
    assert curve["chosen"] in curve["points"]


@pytest.mark.parametrize("dial", ["dead_zone", "k", "top"])
@pytest.mark.parametrize("mode", ["each", "together"])
def test_every_dial_alone_and_together(dial, mode, tmp_path):
    net = model(at=[{"sites": ["ffn_in"], "neuron": {"kind": "adaptive_threshold", "k": 5.0}}])
    tuned = quick(net, silent=0.4, dial=dial, mode=mode)
    assert tuned.after.silent_fraction > 0.35
    assert {row["dial"] for row in tuned.dials.values()} == {dial}
    if mode == "together" and dial == "dead_zone":
        assert len({row["after"] for row in tuned.dials.values()}) == 1
    again, tokens = load(save(tuned.model, tmp_path / "a.snn")), torch.randint(0, 257, (1, 9))
    assert torch.equal(again(tokens), tuned.model(tokens))


def test_leaky_and_integer_models():
    tuned = quick(quantise(model({"kind": "lif_sint"})), silent=0.6, decode_tokens=2)
    assert tuned.after.silent_fraction > 0.55
    assert tuned.after.tokens_per_second == tuned.after.tokens_per_second_w8a


def test_a_budget_is_not_overdrawn(tmp_path):
    net = model()
    tuned = quick(net, budget=1.0)
    assert tuned.target == {"budget": 1.0}
    measured = lambda n: (1.0 + 0.1 * n, 0.05 * n)  # noqa: E731
    assert stopping_place(10, measured, None, 1.36) == 3  # e^0.3 < 1.36 < e^0.4
    assert stopping_place(10, measured, None, 1.0) == 0
    assert stopping_place(10, measured, None, 3.0) == 10
    assert stopping_place(10, measured, 0.31, None) == 7
    assert stopping_place(10, measured, 0.7, None) is None
    for i, each in enumerate((tuned, quick(net))):  # also where nothing was turned
        load(save(each.model, tmp_path / f"{i}.snn"))


def test_a_budget_is_kept_on_text_that_played_no_part_in_the_choice(monkeypatch):
    losses = {n: torch.full((4,), 1.0 + 0.1 * n) for n in range(6)}
    monkeypatch.setattr(dial_path, "set_model_dials", lambda model, names, values: model.append(values))
    monkeypatch.setattr(dial_path, "window_losses", lambda model, windows: losses[model[-1]] + windows)
    seen = {n: (0.05 * n, 0.1 * n) for n in range(6)}  # where it is looked for, each setting costs half as much
    rows = [DialPath([], {}, None, list(range(6)), seen, check) for check in (None, torch.zeros(4))]
    ends = [better([row], None, math.exp(0.26))[1] for row in rows]
    assert ends == [5, 2]
    noise = torch.tensor([0.04, -0.04, 0.04, -0.04])  # the same mean, less sure of it
    losses = {n: row + n * noise for n, row in losses.items()}
    unsure = DialPath([], {}, None, list(range(6)), seen, torch.zeros(4))
    assert unsure.cost(2) == pytest.approx(0.2 + 1.645 * 2 * float(noise.std()) / 2)
    assert better([unsure], None, math.exp(0.26))[1] == 1
    alone = DialPath([], {}, None, list(range(6)), seen, torch.zeros(1))  # one window tells no error: its cost, again
    losses = {n: row[:1] for n, row in losses.items()}
    assert alone.cost(1) == pytest.approx(2.645 * float(losses[1] - losses[0]))


def test_no_text_is_used_twice():
    text = bytes(torch.randint(33, 123, (2000,), generator=torch.Generator().manual_seed(0)).tolist()).decode()
    order, chosen, checked, held = tuning_windows(model(), text, 32, 256, 128)
    parts = [{tuple(row) for row in part.tolist()} for part in (order, chosen, checked, held)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_without_a_goal_the_curve_is_measured():
    net = model()
    tuned = quick(net)
    assert tuned.before == tuned.after == tuned.curve[0]
    assert len(tuned.curve) == 3
    assert tuned.model.state_dict().keys() == net.state_dict().keys()


def test_goals_that_make_no_sense_are_refused():
    net = model()
    with pytest.raises(ValueError, match="not both"):
        quick(net, silent=0.5, budget=1.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quick(net, silent=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        quick(net, budget=0.9)
    with pytest.raises(ValueError, match="there are dead_zone, k, top"):
        quick(net, silent=0.5, dial="volume")
    with pytest.raises(ValueError, match="out of reach"):
        quick(net, silent=0.97, dial="top")
    with pytest.raises(ValueError, match="no spike sites"):
        quick(model(sites=[]), silent=0.5)
    with pytest.raises(ValueError, match="there are auto, each and together"):
        quick(net, silent=0.5, mode="both")
    with pytest.raises(ValueError, match="have no amount in common"):
        quick(model(at=[{"sites": ["ffn_in"], "neuron": {"kind": "ilif"}}]), silent=0.5, mode="together")
    with pytest.raises(ValueError, match="tokens; at least 198 are needed"):
        tune(net, "short", silent=0.5, seq_len=32)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(model(), "m.snn")
    (tmp_path / "t.txt").write_text(TEXT)
    less = ["--seq-len", "32", "--tokens", "128", "--points", "3", "--decode", "0"]
    assert main(["m.snn", "--text", "t.txt", "--silent", "0.5", "--to", "o.snn", *less]) == 0
    out = capsys.readouterr().out
    assert "<-" in out
    assert "wrote o.snn" in out
    data = json.loads((tmp_path / "m.tune" / "tune.json").read_text())
    assert data["target"] == {"silent": 0.5}
    assert (tmp_path / "m.tune" / "tune.png").read_bytes()[:4] == b"\x89PNG"
    assert load(tmp_path / "o.snn").spec.neuron.dead_zone > 0
    with pytest.raises(SystemExit):
        main(["m.snn", "--text", "t.txt", "--to", "p.snn"])
    assert "--to needs a goal" in capsys.readouterr().err


def test_a_model_that_is_spoilt_is_called_so(tmp_path):
    from fastsnn_tune.cli import curve_text

    def point(silent, perplexity):
        return {"silent_fraction": silent, "perplexity": perplexity, "tokens_per_second": 0, "tokens_per_second_w8a": 0}

    before, spoilt, fine = point(0.1, 100.0), point(0.999, 775.0), point(0.5, 199.0)
    data = {"curve": [before, spoilt], "before": before}
    assert "that is 7.75 times the perplexity: most of" in curve_text(data | {"after": spoilt}, tmp_path, None)
    assert "times the perplexity" not in curve_text(data | {"after": fine}, tmp_path, None)


def test_a_large_decoder_is_tuned_by_estimates_from_one_backward_pass(monkeypatch):
    from fastsnn_tune import dial_order, estimated, search

    net = model(n_layers=2)
    _, chosen, _, _ = tuning_windows(net, TEXT, 32, 512, 96)
    names = dict.fromkeys(sites(net), "dead_zone")
    monkeypatch.setattr(estimated, "LARGE", 1)
    estimates, found = dial_order.dial_steps(net, names, chosen), sites(net)
    assert [steps[0].site for steps in estimates] == list(names)
    with torch.no_grad():
        before = net(chosen[:, :-1]).log_softmax(-1)
        for steps in estimates:
            alone, last = {steps[0].site: found[steps[0].site]}, steps[-1].value
            set_dials(alone, names, {steps[0].site: last})
            after = net(chosen[:, :-1]).log_softmax(-1)
            set_dials(alone, names, dict.fromkeys(alone, 0.0))
            divergence = float((before.exp() * (before - after)).sum(-1).mean())
            assert 0.5 < sum(s.nats for s in steps) / divergence < 2, steps[0].site
    monkeypatch.setattr(search, "loss", counted := Counted(search.loss))
    monkeypatch.setattr("fastsnn_tune.dial_order.loss", counted)
    monkeypatch.setattr("fastsnn_tune.dial_path.loss", counted)
    tuned = quick(net, silent=0.5)
    assert 0.45 <= tuned.after.silent_fraction <= 0.75
    assert counted.calls < 30, "a few readings of the text, not some for every site"
    assert {row["dial"] for row in tuned.dials.values()} == {"dead_zone"}
    assert value_of(sites(net)["layers.0.attention.inner"], "dead_zone") == 0.0, "the model given is left as it was"


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)
