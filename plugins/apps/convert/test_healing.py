"""How healing learns: gradients through thresholds, text written as it goes, the rate."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
import torch
from test_language import FAST, TEXT, folder  # noqa: F401

from fastsnn_convert import ConversionError, convert
from fastsnn_convert.heal_cli import main as heal_main
from fastsnn_convert.language import teacher_cache
from fastsnn_convert.language.balance import threshold
from fastsnn_convert.language.distillation import Healer, Healing, heal
from fastsnn_convert.language.distillation_data import SelfGeneratedData, tokens_of
from fastsnn_convert.language.distillation_loss import head_input, mean_kl
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.rebuild import rebuild, site_table
from fastsnn_convert.language.silent_shares import FIRST, SilentShares
from fastsnn_convert.language.teacher_cache import TeacherCache
from fastsnn_convert.language.threshold_gradients import lsq_gradients
from fastsnn_convert.language.token_replacement import TokenReplacement
from fastsnn_core import SpikeSite, create, load, save
from fastsnn_integer.quantization import quantise


@pytest.mark.parametrize(
    "neuron",
    [
        create("neuron", "adaptive_threshold", k=0.8),
        create("neuron", "adaptive_threshold", k=2.0, limit=2),
        create("neuron", "adaptive_max", steps=2),
        create("neuron", "adaptive_max", steps=2, burst=2),
        create("neuron", "adaptive_max", steps=3, clip=0.6),
    ],
)
def test_gradients_pass_through_the_threshold_and_values_stay(neuron):
    torch.manual_seed(0)
    site = SpikeSite(neuron.build(12), 12)
    x, g = torch.randn(2, 3, 12) * 2, torch.randn(2, 3, 12)
    x[1, 1] = 0.0  # a token without input
    plain = site(x)[0].value()
    with lsq_gradients(site):
        leaf = x.clone().requires_grad_()
        out = site(leaf)[0]
        assert torch.equal(out.value(), plain)
        (out.value() * g).sum().backward()
    same = x.clone().requires_grad_()
    v = threshold(same, site.neuron).clamp_min(1e-5)
    u = (x / v).detach()
    counts = (plain / v).detach()
    off = torch.where((u - counts).abs() <= 0.5 + 1e-5, counts - u, 0.0)
    ((same + off * v) * g).sum().backward()
    torch.testing.assert_close(leaf.grad, same.grad)
    assert not torch.allclose(leaf.grad, g)


def test_healing_passes_gradients_through_thresholds_and_leaves_nothing_behind(folder):  # noqa: F811
    def healed(**settings: Any) -> Any:
        model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model
        k = [float(site.neuron.k) for _, site in site_table(model).values() if site.neuron is not None]
        heal(model, folder, [TEXT], steps=3, batch=4, length=16, quiet=True, **settings)
        assert k == [float(site.neuron.k) for _, site in site_table(model).values() if site.neuron is not None]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        return model

    through, past = healed(), healed(thresholds=False)
    assert list(through.state_dict()) == list(past.state_dict())
    assert not torch.equal(through.layers[0].attention.q.weight, past.layers[0].attention.q.weight)


def test_text_is_written_as_it_goes_and_depends_on_the_step_alone(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(SelfGeneratedData, "CHUNK", 8 * 16)
    monkeypatch.setattr(SelfGeneratedData, "MORE", 16)
    dense = import_dense(folder)
    text = tokens_of([TEXT], dense)
    one = SelfGeneratedData(dense, 16, text)
    pieces = [one.pieces(step, 4, 0) for step in range(40)]
    again = SelfGeneratedData(dense, 16, text)
    for step in (37, 3, 38):  # a run that is taken up begins anywhere
        assert torch.equal(again.pieces(step, 4, 0), pieces[step])
    assert one.chunk == (0, 39 * 4 * 16 // (8 * 32 * one.READ))
    assert not torch.equal(one.pieces(3, 4, 1), pieces[3])
    begins = {tuple(row.tolist()) for row in text.unfold(0, one.BEGIN, 1)}
    assert all(tuple(row[: one.BEGIN].tolist()) in begins for row in one.tokens)


@pytest.mark.parametrize("short", [True, False])
def test_words_of_the_text_are_exchanged_anew_at_every_reading(folder, monkeypatch, short):  # noqa: F811
    dense = import_dense(folder).eval()
    ids = tokens_of([TEXT], dense)[:515]
    places = torch.arange(16) * 31
    pieces = ids[places[:, None] + torch.arange(32)]
    monkeypatch.setattr(TokenReplacement, "SHORT", 10**6 if short else 10)

    def altered(share: float, seed: int, text: Any = None) -> Any:
        text = text or TokenReplacement(dense, ids, 32, share, 1.0)
        return text.pieces(places, torch.Generator().manual_seed(seed))

    one = altered(0.5, 0)
    used = TokenReplacement(dense, ids, 32, 0.5, 1.0)
    used.pieces(places[9:] + 3, torch.Generator().manual_seed(3))
    assert torch.equal(one, altered(0.5, 0, used))  # whatever was read before
    assert not torch.equal(one, altered(0.5, 1))
    assert torch.equal(one[:, 0], pieces[:, 0])  # nothing stands before the first
    assert 0.3 < (one != pieces).float().mean() < 0.55
    assert (altered(0.1, 0) != pieces).float().mean() < 0.15
    assert torch.equal(altered(0.0, 0), pieces)
    probs = dense(pieces[:, :-1]).softmax(-1)
    changed = (one != pieces)[:, 1:]
    chosen = probs.gather(-1, one[:, 1:, None])[..., 0][changed].log().mean()
    assert chosen > probs.log().mean(-1)[changed].mean() + 0.05  # what the teacher would say, not anything


def test_the_weight_of_hidden_states_falls_with_the_rate():
    settings = Healing(steps=100, fall=0.5)
    assert [settings.falling(p) for p in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]


def test_a_run_exchanges_other_words_every_time_and_lets_the_hidden_states_go(folder, monkeypatch):  # noqa: F811
    seen, loss = [], Healer.loss

    def spy(self, tokens, weight, *rest):
        seen.append((tokens, weight))
        return loss(self, tokens, weight, *rest)

    monkeypatch.setattr(Healer, "loss", spy)
    model: Any = convert(folder, calibration=[TEXT], windows=2, measure=False, quiet=True).model
    ids = tokens_of([TEXT], model)[:17]
    settings = {"hidden": 4.0, "fall": 0.5, "written": 0.0, "altered": 0.5, "batch": 2, "length": 16}
    heal(model, folder, ids, steps=10, quiet=True, **settings)
    assert [weight for _, weight in seen] == pytest.approx([4.0] * 6 + [3.2, 2.4, 1.6, 0.8])
    rows = [row for tokens, _ in seen for row in tokens if row[0] == ids[0]]  # the same place every time
    assert len(rows) > 4
    assert len({tuple(row.tolist()) for row in rows}) > len(rows) / 2


def test_a_larger_budget_does_not_change_what_came_before_the_fall():
    short, long = Healing(steps=100), Healing(steps=1000)
    assert [short.rate(s, short.progress(s, 0.0, 1.0)) for s in range(60)] == [
        long.rate(s, long.progress(s, 0.0, 1.0)) for s in range(60)
    ]
    rates = [short.rate(s, short.progress(s, 0.0, 1.0)) for s in range(60, 100)]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] < 0.06 * short.rate(50, 0.0)


def test_a_share_beyond_one_is_refused(folder):  # noqa: F811
    model: Any = import_dense(folder)
    with pytest.raises(ConversionError, match=r"0 … 1, got 1\.5"):
        heal(model, folder, [TEXT], steps=3, written=1.5)


def test_the_divergence_in_pieces_is_that_of_all_logits(monkeypatch):
    monkeypatch.setattr("fastsnn_convert.language.distillation_loss.LOGITS", 3 * 40)
    torch.manual_seed(0)
    said, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    wanted, teacher = torch.randn(2, 5, 8), torch.randn(40, 8)
    found = mean_kl(said, weight, wanted, teacher)
    grads = torch.autograd.grad(2 * found, [said, weight])
    p, q = (wanted @ teacher.T).log_softmax(-1), (said @ weight.T).log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(found, whole)
    for a, b in zip(grads, torch.autograd.grad(2 * whole, [said, weight])):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_the_head_reads_gives_the_logits(folder):  # noqa: F811
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model
    tokens = tokens_of([TEXT], model)[:24][None]
    head = model.embed if model.head is None else model.head
    torch.testing.assert_close(head_input(model, tokens) @ head.weight.T, model(tokens))


def test_constants_alone_leave_every_weight_as_it_was(folder):  # noqa: F811
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    heal(model, folder, [TEXT], steps=6, batch=4, length=16, constants_first=1.0, lr_constants=1e-2, quiet=True)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (p.ndim >= 2), name
        assert p.requires_grad


def test_a_model_of_which_nothing_is_trained_is_refused(folder):  # noqa: F811
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model.requires_grad_(False)
    with pytest.raises(ConversionError, match="no parameter of this model is trained"):
        heal(model, folder, [TEXT], steps=6, batch=4, length=16, quiet=True)


def test_weights_follow_after_the_constants_share(folder, monkeypatch):  # noqa: F811
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model
    weight, seen, loss = model.layers[0].attention.q.weight, [], Healer.loss

    def spy(self, tokens, hidden, *rest):
        seen.append(weight.detach().clone())
        return loss(self, tokens, hidden, *rest)

    monkeypatch.setattr(Healer, "loss", spy)
    heal(model, folder, [TEXT], steps=6, batch=4, length=16, constants_first=0.5, quiet=True)
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[3], seen[4])


def silenced(folder):  # noqa: F811
    """A model that is half silent by dead zones."""
    model = convert(folder, k=2.0, measure=False, calibration=[TEXT], **FAST).model
    neuron = attrs.evolve(model.spec.neuron, dead_zone=2.0)
    return rebuild(model, attrs.evolve(model.spec, neuron=neuron))


def test_dead_zones_follow_until_a_site_is_as_silent_as_it_was():
    site = SpikeSite(create("neuron", "adaptive_threshold", k=4.0, dead_zone=3.0).build(256), 256)
    watch, generator = SilentShares.of(site), torch.Generator().manual_seed(0)
    shares = []
    with watch.watched():
        for step in range(48):
            x = torch.randn(4, 8, 256, generator=generator)
            spikes = site(x.pow(3) if step < FIRST else x)[0]  # numbers far apart, then less so: fewer are small
            shares.append(float((spikes.counts == 0).float().mean()))
            watch.follow()
    assert shares[0] - shares[FIRST] > 0.1
    assert abs(sum(shares[-8:]) / 8 - sum(shares[:FIRST]) / FIRST) < 0.02


def test_a_run_holds_silence_where_it_is_asked_to(folder):  # noqa: F811
    for hold in (True, False):
        model = silenced(folder)
        heal(model, folder, [TEXT], hold=hold, steps=FIRST + 2, batch=2, length=16, lr=1e-2, quiet=True)
        zones = {float(site.neuron.dead_zone) for _, site in site_table(model).values() if site.neuron is not None}
        assert (zones != {2.0}) == hold


def test_a_run_that_was_cut_off_has_the_same_dead_zones(folder, tmp_path):  # noqa: F811
    settings: dict[str, Any] = {"batch": 4, "length": 16, "lr": 1e-2, "log": 1, "quiet": True, "every": 12}
    whole, cut = silenced(folder), silenced(folder)
    rows = heal(whole, folder, [TEXT], steps=24, fall=0.0, **settings)
    heal(cut, folder, [TEXT], steps=12, fall=0.0, out=tmp_path / "run", **settings)
    rest = heal(cut, folder, [TEXT], steps=24, fall=0.0, out=tmp_path / "run", resume=True, **settings)
    assert [r["kl"] for r in rest] == [r["kl"] for r in rows]
    for (name, a), b in zip(whole.state_dict().items(), cut.state_dict().values()):
        assert torch.equal(a, b), name


def test_what_is_left_open_follows_the_size():
    small, large = (Healing(steps=1).fitted(w, n, True) for w, n in ((64, 260_000), (576, 134_000_000)))
    assert (small.lr, small.lr_constants, small.batch, small.length, small.hidden) == (1e-3, 1e-3, 8, 128, 10.0)
    assert large.lr == pytest.approx(1e-3 / 9)
    assert (large.constants_first, large.checkpointing, large.embedding) == (1.0, False, False)
    weights = Healing(steps=1, lr=2e-5).fitted(576, 134_000_000, True)
    assert (weights.lr, weights.constants_first, weights.checkpointing) == (2e-5, 0.4, True)
    assert Healing(steps=1, constants_first=0.5).fitted(576, 134_000_000, True).checkpointing
    assert Healing(steps=1).fitted(576, 134_000_000, True, new=True).constants_first == 0.4
    assert Healing(steps=1, activation="relu").fitted(576, 134_000_000, True).constants_first == 0.4
    assert large.lr_constants == 2 * large.lr  # at ten times as much the divergence rises again after 17 steps
    assert Healing(steps=1, lr=5e-4, batch=2).fitted(576, 1000, True).batch == 2


@pytest.mark.parametrize(("budget", "says"), [({"steps": 4}, "1/4 steps"), ({"minutes": 0.02}, "/1 s step 1  loss")])
def test_progress_counts_what_the_budget_is_given_in(budget, says, folder, capsys):  # noqa: F811
    """Not per cent that look like steps."""
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model
    heal(model, folder, [TEXT], batch=2, length=16, **budget)
    assert says in capsys.readouterr().err


def test_the_likeliest_tokens_are_nearly_the_whole_divergence(folder, tmp_path):  # noqa: F811
    """With all tokens but one it is the divergence itself, and its gradient; with fewer it is less."""
    dense = import_dense(folder).eval()
    size, tokens = dense.spec.vocab_size, tokens_of([TEXT], dense)[:24][None]
    wanted, weight = head_input(dense, tokens).detach(), dense.head.weight if dense.head else dense.embed.weight
    other = (weight + 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))).detach()
    leaves = [t.clone().requires_grad_() for t in (wanted * 1.3, other) * 2]
    whole = mean_kl(leaves[0], leaves[1], wanted, weight.detach())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_cache, "TOP", size)
        cache = TeacherCache.of(dense, Healing(steps=1, hidden=0.0, teacher_cache=str(tmp_path / "all")))
        close = cache.divergence(leaves[2], leaves[3], tokens)
    whole.backward()
    close.backward()
    torch.testing.assert_close(close, whole, atol=1e-6, rtol=1e-4)
    for a, b in ((0, 2), (1, 3)):
        torch.testing.assert_close(leaves[b].grad, leaves[a].grad, atol=1e-7, rtol=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_cache, "TOP", 3)
        few = TeacherCache.of(dense, Healing(steps=1, hidden=0.0, teacher_cache=str(tmp_path / "few")))
        leaf = (wanted * 1.3).double().requires_grad_()
        less = few.divergence(leaf, other.double(), tokens)
        assert 0 < less.item() < whole.item()
        (slope,) = torch.autograd.grad(less, leaf)
        with torch.no_grad():
            step = 1e-2 * slope / slope.norm()
            up, down = (float(few.divergence(leaf + s * step, other.double(), tokens)) for s in (1, -1))
    assert (up - down) / 2e-2 == pytest.approx(float(slope.norm()), rel=2e-3)


def test_a_second_run_does_not_run_the_teacher_and_has_the_same_bits(folder, tmp_path, monkeypatch):  # noqa: F811
    settings: Any = {"steps": 3, "batch": 2, "length": 16, "hidden": 0.0, "written": 0.0, "altered": 0.0, "quiet": True}
    settings |= {"log": 1, "teacher_cache": str(tmp_path / "kept")}
    first, second, third = (convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model for _ in range(3))
    rows = heal(first, folder, [TEXT], **settings)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 3  # other pieces, other files
    monkeypatch.setattr(teacher_cache, "head_input", None)
    again = heal(second, folder, [TEXT], **settings)
    assert [r["kl"] for r in again] == [r["kl"] for r in rows]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    other = import_dense(folder)
    with torch.no_grad():
        other.embed.weight[0, 0] += 0.5
    with pytest.raises(TypeError, match="not callable"):  # another teacher's words are not this one's
        heal(third, other, [TEXT], **settings)
    for file in (tmp_path / "kept").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ConversionError, match=r"cannot be read.*delete it"):
        heal(third, folder, [TEXT], **settings)
    with pytest.raises(ConversionError, match="hidden=0"):
        heal(third, folder, [TEXT], **settings | {"hidden": 1.0})


def test_the_command_heals_a_bundle(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST).model
    save(model, "a.snn")
    (tmp_path / "t.txt").write_text(TEXT * 3)
    argv = ["a.snn", "--teacher", str(folder), "--text", "t.txt", "--steps", "4", "--quiet", "--to"]
    assert heal_main([*argv, "b.snn", "--constants"]) == 0
    assert "wrote b.snn" in capsys.readouterr().out
    again = load("b.snn")
    assert again.meta["milestones"][-1]["what"] == "heal"
    assert torch.equal(again.layers[0].attention.q.weight, model.layers[0].attention.q.weight)
    assert not torch.equal(again.layers[0].attention_norm.weight, model.layers[0].attention_norm.weight)
    save(quantise(model), "c.snn")
    with pytest.raises(ConversionError, match="INT8 weights"):
        heal_main(["c.snn", *argv[1:], "d.snn"])
    assert not (tmp_path / "d.snn").exists()
