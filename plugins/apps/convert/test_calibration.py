"""Converting language models: what balancing, sharing out, text, placing and the report's figures promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fastsnn_convert_checkpoint import write as directory
from test_language import FAST, PLAIN, TEXT, tokens
from test_language import folder as folder
from torch.nn import functional as F

import fastsnn_convert
from fastsnn_convert import cli, convert
from fastsnn_convert.language.attention_swap import fit_norm, inheritable, place_attention, replace
from fastsnn_convert.language.balance import calibrate
from fastsnn_convert.language.convert import COVERAGES, Options, calibration_windows
from fastsnn_convert.language.distillation_data import sample_text
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.rebuild import bypass_neurons, rebuild, site_table, with_biases
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_core import create, load
from fastsnn_core.probe import probe
from fastsnn_core.state import nbytes
from fastsnn_text import tokenizer_of

CASES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "head_dim": 4},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "hybrid": {},
}


@pytest.mark.parametrize("coverage", ["projections", "boundaries"])
@pytest.mark.parametrize("case", CASES)
def test_balancing_leaves_the_function_of_every_family(case: str, coverage: str, tmp_path: Path) -> None:
    """Biases, norms on heads, untied heads and gla's gates take part in it; gla sees what all keys share."""
    kind = CASES[case]
    path = directory(tmp_path / "hf", {"architectures": None} | kind)
    weights = load_file(path / "model.safetensors")
    save_file({n: t * (1.0 if "norm" in n else 0.4) for n, t in weights.items()}, path / "model.safetensors")
    dense, x = import_dense(path), tokens()
    if case == "hybrid":
        dense = replace(dense, inheritable("hybrid_alt", 8), x)
    with torch.no_grad():
        want = dense(x)
    sites = COVERAGES[coverage]
    centred = sites if coverage == "projections" else ("k", "ffn_hidden")
    spec = attrs.evolve(dense.spec, neuron=create("neuron", "adaptive_threshold"), sites=sites)
    model = rebuild(dense, with_biases(spec, centred))
    keys: list[Any] = []
    rows = calibrate(model, x, samples=x.numel(), steps=12).rows
    handle = model.layers[-1].attention.k_site.register_forward_pre_hook(lambda _, args: keys.append(args[0]))
    assert max(r["factor"] for r in rows) > 1.05
    assert (
        max(float(s.centre.detach().abs().max()) for _, s in site_table(model).values() if s.centre is not None) > 0.01
    )
    with bypass_neurons(model), torch.no_grad():
        torch.testing.assert_close(model(x), want, atol=1e-4 * float(want.std()), rtol=1e-3)
    handle.remove()
    if coverage == "boundaries":  # a softmax would not mind a wrong centre, but spikes do
        torch.testing.assert_close(keys[0].mean((0, 1)), model.layers[-1].attention.k_site.centre, atol=1e-3, rtol=1e-3)


def test_what_is_measured_was_not_fitted_on() -> None:
    ids = torch.arange(1000) % 19
    ids = ids + 19 * (torch.arange(1000) // 20)  # every window is told apart

    class Sized:
        spec = attrs.make_class("Spec", {"vocab_size": attrs.field(default=2000)})()

        def parameters(self) -> list[Any]:
            return []

    fit, held = calibration_windows(Sized(), Options(calibration=ids, window=20, windows=10))
    assert fit.shape == (10, 20)
    assert held.shape == (32, 20)  # the headline is of many windows, however few are fitted on
    assert not set(fit.flatten().tolist()) & set(held.flatten().tolist())


def test_a_stream_that_ends_begins_anew(folder: Path) -> None:
    dense = import_dense(folder)
    text = sample_text(
        dense, 16, 40, seed=1
    )  # without a start token: an end follows an end no oftener than anything else
    assert (text[:, 0] == 2).all()
    assert ((text[:, :-1] == 2) & (text[:, 1:] == 2)).float().mean() < 0.1
    tokenizer_of(dense).start = 1  # type: ignore[attr-defined]
    text = sample_text(dense, 16, 40, seed=1)
    ended = text[:, :-1] == 2
    assert ended.any()
    assert (text[:, 1:][ended] == 1).all()
    assert (text[:, 0] == 1).all()


def test_the_first_kind_goes_where_it_costs_least(folder: Path) -> None:
    dense, x = import_dense(folder), tokens()
    held = HeldOutReference.of(dense, x)
    for loud in (0, 1):  # the layer whose output is small does not mind
        with torch.no_grad():
            for i, layer in enumerate(dense.layers):
                layer.attention.out.weight.mul_(1.0 if i == loud else 1e-3)
        held = HeldOutReference.of(dense, x)
        kinds, costs = place_attention(dense, inheritable(["gla", "softmax"]), "sensitivity", x, held)
        assert costs[loud] > costs[1 - loud]
        assert [a.name for a in kinds].index("gla") == 1 - loud
        with torch.no_grad():
            for i, layer in enumerate(dense.layers):
                layer.attention.out.weight.mul_(1.0 if i == loud else 1e3)


def test_a_new_norm_is_fitted_to_the_old_attention(folder: Path) -> None:
    dense, x = import_dense(folder), tokens()
    seen: list[Any] = []
    old = dense.layers[0].attention.mixer
    handle = old.register_forward_hook(lambda _m, args, out: seen.append((args[0], out[0])))
    with torch.no_grad():
        dense(x)
        handle.remove()
        new = replace(dense, inheritable(["gla"]), x).layers[0].attention.mixer
        heads, wanted = seen[0]
        errors = []
        for factor in (1.0, 0.9, 1.1):  # least squares, channel by channel
            new.norm.weight.mul_(factor)
            errors.append(float((new(heads, None, None)[0] - wanted).pow(2).mean()))
            new.norm.weight.div_(factor)
        assert errors[0] == min(errors)
        assert fit_norm(new, heads, wanted).shape == (4,)


@torch.no_grad()
def test_the_reports_figures_are_what_they_say(folder: Path) -> None:
    done = convert(folder, k=1.0, calibration=[TEXT], thorough=True, **PLAIN)
    rows = [r for r in done.report["modules"] if r["site"]]
    figures = done.report["quality"]
    assert figures["ratio"] == pytest.approx(figures["perplexity"] / figures["perplexity_dense"])
    assert rows[0]["error"] == pytest.approx(rows[0]["cumulative"])
    assert rows[-1]["cumulative"] == pytest.approx(figures["kl"])
    dense = import_dense(folder)
    _, spare = calibration_windows(dense, Options(calibration=[TEXT], window=24, windows=6))
    held = HeldOutReference.of(dense, spare)
    assert held.compare(done.model)[0] == pytest.approx(figures["kl"], rel=1e-3)  # the curve put everything back
    assert figures["perplexity_dense"] == pytest.approx(float(held.windows(dense).nats.mean().exp()), rel=1e-3)
    third = site_table(done.model)[rows[2]["site"]][1]
    with bypass_neurons(done.model, [third]):
        assert held.compare(done.model)[0] == pytest.approx(rows[2]["error"], rel=1e-3)
    with probe(done.model) as trace:
        done.model(spare)
    silent = [float((r.spikes.counts == 0).float().mean()) for r in trace.values()]
    assert [r["silent_fraction"] for r in rows] == pytest.approx(silent, abs=1e-6)


def test_steps_hold_after_the_curve_was_measured(folder: Path) -> None:
    done = convert(folder, steps=2, calibration=[TEXT], **PLAIN)
    with probe(done.model) as trace, torch.no_grad():
        done.model(tokens())
    assert max(r.spikes.largest() for r in trace.values()) == 3


@torch.no_grad()
def test_the_state_of_a_hybrid_does_not_grow(folder: Path) -> None:
    """A window of 8 and gla: as many bytes after 16 tokens as after 1024; the dense model's cache grows with each."""
    done = convert(folder, k=3.0, attention="hybrid_alt", attention_window=8, measure=False, **PLAIN)
    size: dict[str, list[int]] = {}
    for name, model in {"hybrid": done.model, "dense": import_dense(folder)}.items():
        state, sizes = None, []
        for piece in torch.randint(0, 19, (1, 1024), generator=torch.Generator().manual_seed(0)).split(16, 1):
            _, state = model(piece, state, return_state=True, last=True)
            sizes.append(nbytes(state))
        size[name] = sizes
    assert len(set(size["hybrid"])) == 1
    assert all(b > a for a, b in zip(size["dense"], size["dense"][1:]))
    assert size["dense"][-1] > 20 * size["hybrid"][-1]


def test_every_word_of_the_command_reaches_the_conversion(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    class Done:
        report = fastsnn_convert.Report()

    def listen(source: str, **options: Any) -> Any:
        told.update(options)
        return Done

    monkeypatch.setattr(fastsnn_convert, "convert", listen)
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT)
    argv = [str(folder), "--to", str(tmp_path / "a.snn"), "--neuron", "adaptive_max", "--steps", "3", "--burst", "2"]
    argv += ["--k", "1.5", "--attention", "gla,softmax", "--place", "sensitivity", "--attention-window", "64"]
    argv += ["--heal", "a.txt", "--heal-minutes", "2", "--heal-steps", "7", "--lora", "4", "--out", "runs", "--resume"]
    argv += ["--coverage", "boundaries", "--code", "bitwise", "--calibration", "b.txt"]
    argv += ["--windows", "7", "--window", "64", "--thorough", "--quiet"]
    assert cli.main(argv) == 0
    assert told == {
        "to": str(tmp_path / "a.snn"), "neuron": "adaptive_max", "steps": 3, "burst": 2, "k": 1.5,
        "attention": ["gla", "softmax"], "place": "sensitivity", "attention_window": 64, "heal": "a.txt",
        "heal_minutes": 2.0, "heal_steps": 7, "healing": {"lora": 4}, "out": "runs", "resume": True,
        "coverage": "boundaries", "code": "bitwise", "calibration": "b.txt",
        "windows": 7, "window": 64, "thorough": True, "quiet": True,
    }  # fmt: skip


def test_healing_text_is_read_with_the_teachers_tokens(folder: Path) -> None:
    """Words of the text and ids give the same run: nothing else is learnt from."""
    from fastsnn_convert.language.distillation import heal

    settings: dict[str, Any] = {"steps": 3, "batch": 2, "length": 8, "log": 1, "quiet": True}
    runs = []
    for data in (["the cat sat on a mat and then it saw one red bird in some"], None):
        model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **FAST | PLAIN).model
        if data is None:
            data = torch.tensor([3 + i for i in range(15)])
        runs.append([r["kl"] for r in heal(model, folder, data, **settings)])
    assert runs[0] == runs[1]


def test_a_converted_bundle_goes_on_learning(folder: Path, tmp_path: Path) -> None:
    convert(folder, steps=3, measure=False, to=tmp_path / "a.snn", **PLAIN)
    model, x = load(tmp_path / "a.snn").train(), tokens()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    want = model(x)
    assert torch.equal(model.runtime("event", "bitwise", steps=3)(x), want)
