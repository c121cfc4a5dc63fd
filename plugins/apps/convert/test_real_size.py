"""A real chat model, sliced to two layers, and a random one of its width: converted, measured, healed, in W8A."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_fastsnn_convert_checkpoint import write
from tokenizers import Tokenizer, models, pre_tokenizers

from fastsnn_convert import convert
from fastsnn_convert.language.distillation import heal
from fastsnn_convert.language.distillation_data import tokens_of
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.first_layers import first_layers
from fastsnn_convert.language.rebuild import bypass_neurons
from fastsnn_core import load
from fastsnn_integer.quantization import quantise

WIDE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
LAYERS = 2


def whole() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, or a reason to skip."""
    given = os.environ.get("FASTSNN_DATA_CACHE")
    folder = (Path(given) if given else Path.home() / ".cache/fastsnn/smollm2") / "hf"
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not there: the real model is brought by hand (benchmarks/README.md)")
    return folder


@pytest.fixture(params=["random", "real"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two layers of this width."""
    if request.param == "real":
        return first_layers(whole(), tmp_path / "hf", LAYERS)
    path = write(tmp_path / "hf", WIDE | {"num_hidden_layers": LAYERS, "vocab_size": 300, "bos_token_id": 1})
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 300)}
    native = Tokenizer(models.WordLevel(words, "<unk>"))
    native.pre_tokenizer = pre_tokenizers.Whitespace()
    native.save(str(path / "tokenizer.json"))
    return path


def test_two_layers_of_a_real_model(folder: Path, tmp_path: Path) -> None:
    text = " ".join(f"w{i * i % 290}" for i in range(3, 700))
    done = convert(folder, k=6.0, calibration=[text], windows=2, window=64, quiet=True, to=tmp_path / "a.snn")
    quality = done.report["quality"]
    assert 0.8 < quality["ratio"] < 1.25  # a random network has much less to hold on to than a trained one
    assert 0.02 < quality["silent_bytes"] < 0.5
    sites = [row for row in done.report["modules"] if row["site"]]
    assert len(sites) == 4 * LAYERS
    assert all(row["error"] > 0 for row in sites)
    dense, model = import_dense(folder), load(tmp_path / "a.snn")
    tokens = tokens_of([text], dense)[:48][None]
    with torch.no_grad():
        wanted, found = dense(tokens), model(tokens)
        assert torch.equal(found, done.model(tokens))
        with bypass_neurons(model):  # what balancing moves leaves the function as it is
            plain = model(tokens)
        assert float((plain - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
        small = quantise(model)(tokens)
        real = (
            len(dense.embed.weight) > 300
        )  # counts of a random network flip at every rounding (of unrelated logits: 2)
        assert float((small - found).square().mean()) < (0.05 if real else 0.25) * float(found.var())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    log = heal(model, dense, [text], steps=3, batch=1, length=32, constants_first=1.0, log=1, quiet=True)
    assert [row["step"] for row in log] == [1, 2, 3]
    assert all(row["kl"] > 0 for row in log)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) or p.ndim < 2


@pytest.mark.slow
def test_the_whole_real_model(tmp_path: Path) -> None:
    source = whole()
    data = Path(os.environ.get("FASTSNN_DATA", "../shared/data")) / "wikitext2"
    if not (data / "valid.txt").is_file():
        pytest.skip(f"{data} has no text to calibrate on")
    gguf = next(source.parent.glob("*.gguf"), None)
    for path in filter(None, (source, gguf)):
        done = convert(path, k=3.0, calibration=data / "valid.txt", quiet=True)
        assert done.report["quality"]["ratio"] < 1.05
        assert done.report["quality"]["silent_bytes"] > 0.1
