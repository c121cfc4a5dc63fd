"""Language models converted: one call and one command, what is in the bundle, what is refused, and healing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fastsnn_convert_checkpoint import write
from tokenizers import Tokenizer, models, pre_tokenizers

from fastsnn_convert import ConversionError, convert
from fastsnn_convert.cli import main
from fastsnn_convert.language.attention_swap import inheritable, replace
from fastsnn_convert.language.balance import calibrate
from fastsnn_convert.language.distillation import heal
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.rebuild import bypass_neurons, rebuild, site_table, with_biases
from fastsnn_core import create, load, save
from fastsnn_core.probe import probe
from fastsnn_integer.quantization import quantise
from fastsnn_text.tokenizers import tokenizer_of

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "it",
    "saw",
    "one",
    "red",
    "bird",
    "in",
    "some",
    "tall",
    "tree",
]
TEXT = " ".join(WORDS[i * i % len(WORDS)] for i in range(600))
FAST: dict[str, Any] = {"window": 24, "windows": 6, "quiet": True}
PLAIN = FAST | {"balance": False, "spread": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random Llama directory with a tokenizer of words."""
    path = write(tmp_path / "hf", {"bos_token_id": 1, "eos_token_id": 2})
    weights = load_file(path / "model.safetensors")
    save_file({n: t * (1.0 if "norm" in n else 0.4) for n, t in weights.items()}, path / "model.safetensors")
    native = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *WORDS[:16]])}, "<unk>"))
    native.pre_tokenizer = pre_tokenizers.Whitespace()
    native.save(str(path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    return path


def tokens(n: int = 4, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 19, (n, length), generator=torch.Generator().manual_seed(3))


def test_one_command_writes_a_bundle_with_its_tokenizer(folder, tmp_path, capsys):
    out = tmp_path / "out.snn"
    argv = [str(folder), "--to", str(out), "--steps", "4", "--calibration", str(tmp_path / "text.txt"), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["neuron"] == "adaptive_max"
    assert report["quality"]["ratio"] > 0
    spiking = [r for r in report["modules"] if r["status"] == "converted"]
    assert len(spiking) == 4 * 2
    assert all(r["steps"] <= 4 and r["error"] >= 0 and r["cumulative"] >= 0 for r in spiking)
    assert [c["steps"] for c in report["curve"]] == [2, 3, 4, 5, 6, 8]
    assert report["curve"][0]["kl"] > report["curve"][-1]["kl"]
    model = load(out)
    assert model.spec.neuron.steps == 4
    assert json.loads(model.tokenizer_json) == json.loads((folder / "tokenizer.json").read_text())  # laid out anew
    # as transformers reads this directory: no post-processor puts <s> in front of a text, </s> ends it
    assert (tokenizer_of(model).start, tokenizer_of(model).end) == (None, 2)
    assert tokenizer_of(model).encode("bird")[:1] == Tokenizer.from_str(model.tokenizer_json).encode("bird").ids[:1]
    again = tmp_path / "again.snn"
    save(model, again)
    files = [{p.relative_to(b): p.read_bytes() for p in b.rglob("*") if p.is_file()} for b in (out, again)]
    assert files[0] == files[1]
    assert json.loads(files[0][Path("spike.report/conversion.json")])["modules"] == report["modules"]
    assert b"against steps" in files[0][Path("spike.report/conversion.html")].lower()


def test_balancing_leaves_the_dense_function_as_it_is(folder):
    dense, x = import_dense(folder), tokens()
    want = dense(x)
    for coverage in ("projections", "boundaries"):
        done = convert(folder, coverage=coverage, k=2.0, calibration=TEXT.split("then"), measure=False, **FAST)
        moved = [m.centre.detach().abs().max() for _, m in site_table(done.model).values() if m.centre is not None]
        assert min(float(c) for c in moved) > 0
        with bypass_neurons(done.model):
            torch.testing.assert_close(done.model(x), want, atol=2e-4, rtol=1e-3)
        assert not torch.allclose(done.model(x), want, atol=1e-2)


def test_balancing_lowers_the_expected_error_of_outliers(folder):
    dense = import_dense(folder)
    with torch.no_grad():
        dense.layers[0].attention_norm.weight[3] = 30.0
    spec = attrs.evolve(dense.spec, neuron=create("neuron", "adaptive_max", steps=3), sites=("attn_in",))
    model = rebuild(dense, with_biases(spec, ("attn_in",)))
    rows = calibrate(model, tokens(), samples=96, steps=60).rows
    first = next(r for r in rows if r["site"] == "layers.0.attn_in")
    assert first["error_after"] < 0.5 * first["error_before"]
    assert first["factor"] > 2


def test_k_is_shared_out_at_a_constant_mean(folder):
    done = convert(folder, k=2.0, calibration=[TEXT], measure=False, **FAST)
    sites = [s for _, s in site_table(done.model).values() if s.neuron is not None]
    ks, n = torch.tensor([float(s.neuron.k) for s in sites]), torch.tensor([float(s.features) for s in sites])
    assert float(ks.std()) > 0.01
    assert float((ks * n).sum() / n.sum()) == pytest.approx(2.0, rel=1e-3)
    assert 2 / 3 - 1e-4 <= float(ks.min()) <= float(ks.max()) <= 6 + 1e-4


def test_without_text_the_model_writes_it(folder):
    done = convert(folder, steps=3, burst=1, measure=False, **PLAIN)
    assert done.report["tokens"]["written"]
    assert done.model.spec.neuron.burst == 1


def test_both_runtimes_give_the_same_and_counts_fit(folder):
    done = convert(folder, steps=3, measure=False, **PLAIN)
    model, x = done.model, tokens()
    with probe(model) as trace:
        want = model(x)
    assert max(r.spikes.largest() for r in trace.values()) == 7
    assert torch.equal(model.runtime("event", "bitwise", steps=3)(x), want)
    assert torch.equal(model.runtime("count")(x), want)


@pytest.mark.parametrize("options", [{"steps": 3, "burst": 1}, {"k": 2.0}])
def test_integer_weights_give_the_same_bits_in_both_runtimes_and_alone(folder, options):
    model = quantise(convert(folder, calibration=[TEXT], measure=False, **FAST | {"windows": 3}, **options).model)
    x = tokens()
    want = model(x)
    assert torch.equal(model.runtime("event", "bitwise", steps=3)(x), want)
    model.runtime("count")
    assert torch.equal(model(x[1:2]), want[1:2])
    first, state = model(x[:, :7], return_state=True)
    assert torch.equal(torch.cat([first, model(x[:, 7:], state)], 1), want)


def test_healing_lowers_the_divergence_and_resumes_bit_for_bit(folder, tmp_path):
    def fresh() -> Any:
        return convert(folder, k=0.7, measure=False, calibration=[TEXT], **PLAIN).model

    settings: dict[str, Any] = {"batch": 8, "length": 16, "lr": 1e-2, "log": 1, "quiet": True}
    whole = fresh()
    rows = heal(whole, folder, [TEXT], steps=40, **settings)
    assert sum(r["kl"] for r in rows[-8:]) < 0.8 * sum(r["kl"] for r in rows[:8])
    cut = fresh()
    with pytest.raises(KeyboardInterrupt):
        heal(Interrupted(cut, 25), folder, [TEXT], steps=40, out=tmp_path / "run", every=10, **settings)
    again = fresh()
    rest = heal(again, folder, [TEXT], steps=40, out=tmp_path / "run", resume=True, every=10, **settings)
    assert [r["kl"] for r in rest] == [r["kl"] for r in rows]
    for (name, a), b in zip(whole.named_parameters(), again.parameters()):
        assert torch.equal(a, b), name


class Interrupted:
    """A model that is stopped by hand after a number of training steps (everything else is the model's own)."""

    def __new__(cls, model: Any, after: int) -> Any:
        calls = []

        def hook(module: Any, args: Any) -> None:
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(hook)
        return model


def test_attentions_are_replaced_and_healed_in_two_stages(folder):
    done = convert(
        folder, k=3.0, attention="hybrid_alt", place="sensitivity", attention_window=8, calibration=[TEXT],
        heal=[TEXT], heal_steps=40,
        healing={"length": 16, "lr": 1e-2, "written": 0.0, "altered": 0.0, "log": 1}, **PLAIN,
    )  # fmt: skip
    kinds = sorted(a.name for a in done.model.spec.attention)
    assert kinds == ["gla", "sliding_window"]
    assert len(done.report["sensitivity"]) == 2
    assert {r["status"] for r in done.report["modules"] if r["name"].endswith("mixer")} == {"approximated"}
    stages = [r["stage"] for r in done.report["healed"]]
    assert stages == ["attention"] * 20 + ["spikes"] * 20
    apart = [r["kl"] for r in done.report["healed"]]
    assert sum(apart[15:20]) < 0.7 * sum(apart[:5])


def test_inherited_projections_are_the_sources(folder):
    dense = import_dense(folder)
    model = replace(import_dense(folder), inheritable(["gla", "softmax"]), tokens())
    assert [a.name for a in model.spec.attention] == ["gla", "softmax"]
    have = dict(dense.named_parameters())
    new = [n for n, p in model.named_parameters() if n not in have or not torch.equal(p, have[n])]
    assert sorted({n.split(".mixer.")[1].split(".")[0] for n in new}) == ["gate_down", "gate_up", "norm"]


def test_low_rank_healing_merges(folder):
    pytest.importorskip("peft", reason="peft is not installed")
    model = convert(folder, k=0.7, measure=False, calibration=[TEXT], **PLAIN).model
    names = [n for n, _ in model.named_parameters()]
    before = model.layers[0].attention.q.weight.clone()
    rows = heal(model, folder, [TEXT], steps=30, lora=2, batch=4, length=16, lr=1e-2, log=1, quiet=True)
    assert [n for n, _ in model.named_parameters()] == names
    assert all(p.requires_grad for p in model.parameters())
    assert torch.linalg.matrix_rank(model.layers[0].attention.q.weight - before, atol=1e-5) <= 2
    assert sum(r["kl"] for r in rows[-8:]) < sum(r["kl"] for r in rows[:8])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibration": "absent.txt"}, "absent.txt is no file"),
        ({"calibration": ["the"]}, "has 1 tokens"),
        ({"calibration": torch.tensor([3, 99])}, "0 … 18"),
        ({"coverage": "activations"}, "projections, boundaries"),
        ({"code": "unary"}, "binary digits"),
        ({"neuron": "lif_sint", "k": 2.0}, "has no k"),
        ({"burst": 2}, "has no burst"),
        ({"attention": "glaa"}, "no attention 'glaa'"),
        ({"attention": "hybrid_alt", "place": "best"}, "cycle or sensitivity"),
        ({"heal": ["the cat sat"]}, "without a budget"),
        ({"spec": "x.toml"}, "without spec"),
        ({"centred": ("embed",)}, "nothing makes up for a centre"),
    ],
)
def test_what_is_refused(folder, tmp_path, options, says):
    with pytest.raises(ConversionError, match=says):
        convert(folder, to=tmp_path / "no.snn", measure=False, **(PLAIN | options))
    assert not (tmp_path / "no.snn").exists()
