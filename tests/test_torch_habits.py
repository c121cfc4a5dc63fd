"""What a PyTorch user does with a model in the first hour."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fastsnn_core import create, load
from fastsnn_core.errors import ArgumentError, FastSNNError

pytest.importorskip("fastsnn")


@pytest.fixture
def model():
    from fastsnn import FastSNN
    from fastsnn_text import attach, load_tokenizer

    torch.manual_seed(0)
    made = FastSNN.build(d_model=32, n_layers=2, n_heads=2, d_ff=48, vocab_size=257, neuron="lif_sint").eval()
    attach(made, load_tokenizer("byte"))
    return made


IDS = torch.arange(24).reshape(2, 12) % 200


def test_copies_pickles_and_state_dicts_give_the_same_bits(model, tmp_path):
    wanted = model(IDS)
    torch.save(model, tmp_path / "m.pt")
    torch.save(model.state_dict(), tmp_path / "s.pt")
    for again in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "m.pt", weights_only=False),
    ):
        assert torch.equal(again(IDS), wanted)
    other = type(model)(model.spec).eval()
    assert not torch.equal(other(IDS), wanted)
    other.load_state_dict(torch.load(tmp_path / "s.pt"))
    assert torch.equal(other(IDS), wanted)


def test_a_loop_by_hand_over_a_loader_learns(model):
    loader = DataLoader(TensorDataset(IDS.repeat(8, 1)), batch_size=4)
    optimizer, losses = torch.optim.AdamW(model.train().parameters(), lr=3e-3), []
    for _ in range(4):
        for (ids,) in loader:
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_no_grad_and_inference_mode(model):
    wanted = model(IDS).detach()
    with torch.no_grad():
        assert torch.equal(model(IDS), wanted)
    with torch.inference_mode():
        assert torch.equal(model(IDS), wanted)


def test_printing_says_the_constants(model):
    text = repr(model)
    assert "Leaky(beta=0.5, theta=" in text
    assert "SpikeSite(\n" in text or "SpikeSite(32 channels" in text
    assert "no neuron: numbers pass as they are" in text
    assert "WindowMixer(window=" in text
    html = model._repr_html_()
    assert "lif_sint" in html
    assert "<details>" in html
    assert f"{sum(p.numel() for p in model.parameters()):,}" in html


def test_generate_is_a_method(model):
    from fastsnn import FastSNN

    text = model.generate("The ", max_tokens=6, temperature=0)
    assert text == FastSNN.generate(model, "The ", max_tokens=6, temperature=0)
    ids = torch.tensor([list(b"The ")])
    found = model.generate(ids, max_tokens=6, temperature=0)
    assert found.shape[0] == 1
    assert found[0, :4].tolist() == list(b"The ")
    assert bytes(t for t in found[0, 4:].tolist() if t < 256).decode("utf-8", "replace") == text
    assert torch.equal(model.generate(ids[0], max_tokens=6, temperature=0), found[0])
    new = {"input_ids": ids, "max_new_tokens": 6}
    assert torch.equal(model.generate(**new, do_sample=False), found)
    assert torch.equal(model.generate(**new, do_sample=True, temperature=0), found)
    assert model.generate(ids[0].tolist(), max_tokens=6, temperature=0) == found[0].tolist()
    for wrong in (["a", "b"], None, 3, ids.repeat(2, 1)):
        with pytest.raises(ArgumentError, match="the prompt is one text"):
            model.generate(wrong)
        with pytest.raises(ArgumentError, match="the prompt is one text"):
            FastSNN.generate(model, wrong)
    with pytest.raises(ArgumentError, match="did you mean 'temperature'"):
        model.generate("x", temperatur=0)
    assert "".join(FastSNN.stream(model, list(b"The "), 6, temperature=0)) == text
    for call in (model.generate, lambda *a, **k: FastSNN.generate(model, *a, **k)):
        with pytest.raises(ArgumentError, match="stop is a text"):
            call("x", max_tokens=2, stop=3)
    model.norm.weight.data.fill_(float("nan"))
    for temperature in (0, 1):
        with pytest.raises(FastSNNError, match="logits are NaN"):
            model.generate("x", max_tokens=2, temperature=temperature)


def test_wrong_things_are_refused_in_words(model):
    from fastsnn import FastSNN

    for wrong in ("hi", [[1, 2]], None, torch.tensor([1, 2]), torch.rand(1, 3), torch.tensor([[300]])):
        with pytest.raises(FastSNNError, match="token"):
            model(wrong)
    for call in (
        lambda: FastSNN.extend_context(model, None, 64),
        lambda: FastSNN.scope(model, txt="x"),
        lambda: FastSNN.scope("m.snn"),
        lambda: FastSNN.export("m.snn", "x.snn"),
        lambda: FastSNN.export(model, "x.snn", reprot=True),
        lambda: FastSNN.export(model, "x.snn", to="w8"),
        lambda: FastSNN.generate(None, "x"),
        lambda: FastSNN.generate(model, "x", max_tokens=-3),
        lambda: FastSNN.generate(model, "x", top_p=2),
        lambda: FastSNN.serve(model, port=99999, block=False),
        lambda: FastSNN.serve(model, port=0, blok=False),
        lambda: FastSNN.export(model, "x.pt"),
    ):
        with pytest.raises(FastSNNError) as raised:
            call()
        assert len(str(raised.value)) > 20


def test_the_words_of_the_first_documents_can_be_imported():
    from fastsnn import Coder, NeuronCell, SpikeTensor, create

    assert isinstance(create("neuron", "lif"), NeuronCell)
    assert isinstance(create("coder", "rate"), Coder)
    assert SpikeTensor(torch.ones(2)).counts.sum() == 2


def test_the_report_goes_into_the_bundle_unless_the_model_has_changed(model, tmp_path, caplog):
    from fastsnn import FastSNN

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine.txt").write_text("not part of a report")
    FastSNN.scope(model, text="ab", scopes=["sparsity"]).report(tmp_path / "runs")
    made = FastSNN.export(model, tmp_path / "a.snn")
    inside = sorted(p.name for p in (made / "spike.report").iterdir())
    assert inside == ["index.html", "report.json", "sparsity.png"]
    again = FastSNN.export(load(made), tmp_path / "b.snn")
    assert (again / "spike.report/index.html").read_bytes() == (made / "spike.report/index.html").read_bytes()
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert not (FastSNN.export(model, tmp_path / "c.snn") / "spike.report").exists()
    assert "the model has changed since its report" in caplog.text


def test_an_export_never_replaces_what_it_was_made_of(model, tmp_path):
    from fastsnn import FastSNN

    made = FastSNN.export(model, tmp_path / "a.snn")
    before = (made / "weights.safetensors").read_bytes()
    with pytest.raises(FastSNNError, match="would be lost"):
        FastSNN.export(FastSNN.load(made), made, to="w8a")
    assert (made / "weights.safetensors").read_bytes() == before


def test_the_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fastsnn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fastsnn-core ")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, of its own tracing
def test_compiled_models_compute_the_same_and_learn(model):
    wanted = model(IDS)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(IDS), wanted)
    F.cross_entropy(compiled(IDS).flatten(0, 1), IDS.flatten()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_workers_of_a_loader_feed_a_run(model):
    from fastsnn import FastSNN

    loader = DataLoader(TensorDataset(IDS.repeat(4, 1)), batch_size=4, num_workers=2)
    trainer = FastSNN.fit(model, loader, max_steps=3, quiet=True)
    assert trainer.step == 3


def test_names_are_completed_and_nothing_is_printed(model, capfd):
    import fastsnn
    from fastsnn import FastSNN

    assert {"FastSNN", "SpikeTensor", "NeuronCell", "Coder", "create"} <= set(dir(fastsnn))
    assert {"build", "fit", "convert", "export", "serve", "generate", "stream"} <= set(dir(FastSNN))
    assert {"generate", "spec", "runtime"} <= set(dir(model))
    assert {"clone", "tolist", "numpy", "T", "relu", "counts", "value"} <= set(dir(fastsnn.SpikeTensor))
    FastSNN.fit(model, [IDS], max_steps=2, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_components_take_lists_and_say_what_they_miss():
    gla = create("attention", "gla")
    spec = create("model", "decoder", attention=[gla, gla])
    assert spec.attention == (gla, gla)
    assert hash(spec) == hash(create("model", "decoder", attention=(gla, gla)))
    with pytest.raises(FastSNNError, match=r"attention: expected list of attention, got \[3\]"):
        create("model", "decoder", attention=[3])
    with pytest.raises(FastSNNError, match=r"model 'sequential' needs its parameter 'input'\n  help: it has "):
        create("model", "sequential", layers=3)


def test_a_decoders_own_word_for_attention_is_taken():
    from fastsnn import FastSNN

    size = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 48, "vocab_size": 257}
    wanted = FastSNN.build(attn="gla", **size).spec
    assert (
        FastSNN.build(attention="gla", **size).spec == FastSNN.build(attention=[{"kind": "gla"}], **size).spec == wanted
    )
    for word in ("kind", "name"):
        with pytest.raises(FastSNNError, match=f"a model has no parameter '{word}'"):
            FastSNN.build(**{word: "decoder"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_missing_device_is_said_in_words_and_nothing_moves(model):
    from fastsnn import FastSNN

    net = FastSNN.build(arch="snn-conv", input=(1, 8, 8), classes=3)
    for m in (model, net):
        for call in (
            lambda m=m: m.cuda(), lambda m=m: m.cuda(0), lambda m=m: m.to("cuda"), lambda m=m: m.to(device="cuda:1"),
            lambda m=m: m.to(torch.device("cuda"), torch.float64), lambda m=m: m.to("gpu"), lambda m=m: m.to(0),
        ):  # fmt: skip
            with pytest.raises(FastSNNError, match=r"no device .* here .*; devices: cpu"):
                call()
        assert {p.dtype for p in m.parameters()} == {torch.float32}
        assert m.to("cpu") is m
        assert m.to(torch.device("cpu"), torch.float64) is m
        assert m.to(torch.zeros(1)) is m
        assert next(m.to("meta").parameters()).is_meta


def test_inputs_on_another_device_are_refused_and_both_are_named(model):
    """An embedding on the CPU takes ids of the meta device and gives what happens to be in memory."""
    from fastsnn import FastSNN
    from fastsnn_convert import convert

    net = FastSNN.build(arch="snn-conv", input=(1, 8, 8), classes=3)
    functions = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    converted = convert(functions, calibration=torch.randn(20, 4)).model
    for m, x in ((model, IDS), (net, torch.rand(2, 1, 8, 8)), (converted, torch.randn(2, 4))):
        with pytest.raises(FastSNNError, match="the input is on meta and the weights on cpu; move one of them"):
            m(x.to("meta"))
        m(x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_torchscript_is_refused_in_words_or_works(model):
    from fastsnn import FastSNN

    net, x = FastSNN.build(arch="snn-conv", input=(1, 8, 8), classes=3).eval(), torch.rand(4, 1, 8, 8)
    for m in (model, net):
        with pytest.raises(FastSNNError, match=r"torch\.jit\.script does not read .*: .* --to onnx"):
            torch.jit.script(m)
    with pytest.raises(FastSNNError, match=r"torch\.jit\.trace keeps the path .* --to onnx"):
        torch.jit.trace(model, IDS)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(net, x[:2])(x), net(x))
