"""Costs of all sites from one backward pass, the report's estimates, and what is checked before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from test_language import FAST, PLAIN, TEXT, tokens
from test_language import folder as folder
from torch.nn import functional as F

from fastsnn_convert import ConversionError, convert
from fastsnn_convert.cli import main
from fastsnn_convert.language import convert as language
from fastsnn_convert.language.balance import calibrate
from fastsnn_convert.language.distillation_data import tokens_of
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.rebuild import bypass_neurons, rebuild, site_table
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_core import create
from fastsnn_core.errors import FileError

EVERY = ("embed", "q", "k", "v", "attn_in", "attn_out", "ffn_in", "ffn_hidden", "head")


@pytest.mark.parametrize("sites", [(*EVERY[:4], "ffn_hidden"), EVERY], ids=["boundaries", "everywhere"])
def test_one_backward_pass_tells_what_every_site_costs(folder: Path, sites: tuple[str, ...]) -> None:
    """Beside the divergence measured when one site alone spikes: on average within 15 %, each within a factor 1.7."""
    dense = import_dense(folder)
    x = torch.cat([tokens() for _ in range(8)])
    x = torch.randint(3, 19, (64, x.shape[1]), generator=torch.Generator().manual_seed(3))
    neuron = create("neuron", "adaptive_threshold", k=4.0)
    model = rebuild(dense, attrs.evolve(dense.spec, neuron=neuron, sites=sites))
    weights = {n: p.clone() for n, p in model.named_parameters()}
    made = calibrate(model, x, move=False, samples=x.numel())
    assert all(torch.equal(p, weights[n]) and p.requires_grad for n, p in model.named_parameters())
    with bypass_neurons(model):
        held = HeldOutReference.of(model, x)
    ratios = []
    for path, (_, site) in site_table(model).items():
        if site.neuron is not None:
            with bypass_neurons(model, [site]):
                ratios.append(made.cost[path] / held.compare(model)[0])
    found = torch.tensor(ratios)
    assert len(found) == len(made.cost)
    assert 1 / 1.7 < float(found.min()) <= float(found.max()) < 1.7
    assert float(found.log().mean().exp()) == pytest.approx(1.0, abs=0.15)


@torch.no_grad()
def test_a_reference_without_logits_compares_like_one_with_them(folder: Path) -> None:
    dense, x = import_dense(folder), tokens()
    held = HeldOutReference.of(dense, x)
    model = convert(folder, k=1.0, measure=False, calibration=[TEXT], **PLAIN).model
    p, q = dense(x).log_softmax(-1), model(x).log_softmax(-1)
    kl, nats = held.compare(model)
    assert kl == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()), rel=1e-4)
    assert nats == pytest.approx(float(F.nll_loss(q[:, :-1].flatten(0, 1), x[:, 1:].flatten())), rel=1e-5)
    own = HeldOutReference.of(dense, x, own=True)
    dense.embed.weight.mul_(2)
    assert own.compare(model)[0] == pytest.approx(kl, rel=1e-6)  # a copied head does not follow what is trained


def test_estimates_stand_beside_measurements(folder: Path) -> None:
    """Everything measured, and the ten worst measured and all else estimated: the same picture."""
    rows = {}
    for thorough in (True, False):
        done = convert(folder, k=3.0, calibration=[TEXT], thorough=thorough, **FAST)
        rows[thorough] = [r for r in done.report["modules"] if r["site"]]
        assert done.report["quality"]["ratio_error"] > 0
        assert 0 < done.report["quality"]["silent_bytes"] < 0.5
    assert not any(r["estimated"] for r in rows[True])
    last = rows[False][-1]["cumulative"]
    assert last == pytest.approx(rows[True][-1]["cumulative"], rel=1e-3)
    for exact, near in zip(rows[True], rows[False], strict=True):
        assert near["error"] == pytest.approx(exact["error"], rel=0.7)
    so_far = [r["cumulative"] for r in rows[False]]
    assert so_far == sorted(so_far)


def test_after_healing_no_site_is_blamed(folder: Path) -> None:
    done = convert(
        folder, k=0.5, calibration=[TEXT], heal=[TEXT], heal_steps=2, healing={"length": 16, "batch": 2}, **FAST
    )
    assert all(r["error"] is None and r["cumulative"] is None for r in done.report["modules"])
    assert "alone" not in " ".join(done.report.advice())
    assert done.report["quality"]["ratio"] > 0


@pytest.mark.parametrize(
    ("text", "ids"), [("the cat sat on a mat\n", 6), ("the cat sat on a mat and then it saw", 10), ("the " * 999, 999)]
)
def test_a_text_is_told_from_a_path(folder: Path, text: str, ids: int) -> None:
    assert len(tokens_of(text, import_dense(folder))) == ids


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--to", "taken.txt"], "taken.txt"),
        (["--to", "hf"], "hf"),
        (["--k", "0"], "--k: must be greater than 0, got 0"),
        (["--k", "-1"], "--k: must be greater than 0, got -1"),
        (["--windows", "0"], "--windows: must be at least 1, got 0"),
        (["--heal-steps", "0"], "--heal-steps: must be at least 1, got 0"),
        (["--heal", "absent.txt", "--heal-steps", "2"], "absent.txt: there is no such file"),
        (["--calibration", "absent.txt"], "absent.txt is no file"),
        (["--resume", "--heal-steps", "2"], "resume needs out"),
        (["--out", "runs"], "without healing"),
    ],
)
def test_arguments_are_checked_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, argv: list[str], says: str
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr(language, "import_dense", never)
    monkeypatch.chdir(tmp_path)
    Path("taken.txt").write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises((ConversionError, FileError, SystemExit)) as refused:
        main([str(folder), *([] if "--to" in argv else ["--to", "new.snn"]), *argv])
    assert says in str(refused.value) + capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_named_neuron_is_the_one_that_is_taken(folder: Path) -> None:
    """Steps limit the counts of a neuron that was named, instead of taking another one."""
    done = convert(folder, neuron="adaptive_threshold", steps=2, calibration=[TEXT], **PLAIN)
    assert done.report["neuron"] == "adaptive_threshold"
    assert max(r["largest"] for r in done.report["modules"] if r["site"]) <= 3
    assert convert(folder, steps=2, calibration=[TEXT], measure=False, **PLAIN).report["neuron"] == "adaptive_max"
