"""A trained language model on the integer path: one perplexity in both runtimes, W8A near float, bits in any batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastsnn_core import load
from fastsnn_events import runtime
from fastsnn_integer.quantization import quantise

pytest.importorskip("fastsnn")


def nats(logits, tokens):
    return float(F.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten()))


@pytest.fixture(scope="module")
def trained(data):
    """stories260k as spikes at its own layers, no balancing; and windows ``[8, 257]`` of a text it was not made for."""
    import attrs

    from fastsnn_convert.language.families import import_dense
    from fastsnn_convert.language.rebuild import rebuild
    from fastsnn_core import create
    from fastsnn_model_decoder import PROJECTIONS
    from fastsnn_text import tokenizer_of

    dense = import_dense(data / "stories260k" / "hf")
    model = rebuild(dense, attrs.evolve(dense.spec, sites=PROJECTIONS, neuron=create("neuron", "adaptive_threshold")))
    text = next((data / "tinystories_text").glob("*.txt")).read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer_of(model).encode(text[-40_000:]))
    return model.eval(), ids[: 8 * 257].reshape(8, 257)


@pytest.mark.slow
def test_both_runtimes_have_one_perplexity_and_w8a_is_within_a_percent(trained, tmp_path):
    from fastsnn import FastSNN

    model, tokens = trained
    with torch.no_grad():
        before = nats(model(tokens[:, :-1]), tokens)
        small = load(FastSNN.export(model, tmp_path / "small.snn", to="w8a"))
        wanted = small(tokens[:, :-1])
        assert nats(wanted, tokens) - before < 0.01  # 1 % of perplexity
        for coder in ("bitwise", "twos_complement"):
            small.runtime("event", coder=coder, steps="auto", calibration=tokens[:1, :64])
            assert torch.equal(small(tokens[:, :-1]), wanted)
        assert torch.equal(runtime.replay(small, tokens[:2, :-1], watch=()).output, wanted[:2])
    weights = [(p / "weights.safetensors").stat().st_size for p in (tmp_path / "small.snn", model_at(model, tmp_path))]
    assert weights[0] <= 0.27 * weights[1]


def model_at(model, folder):
    from fastsnn_core import save

    return save(model, folder / "large.snn")


@pytest.mark.slow
@pytest.mark.parametrize("kv", [False, True])
def test_a_stream_is_itself_in_any_company(trained, kv):
    from fastsnn_integer.quantization import Quant
    from fastsnn_integer.testing import check_batch_invariance

    model, tokens = trained
    rows = tokens[torch.arange(33) % 8, :48].clone()
    rows[8:] = (rows[8:] + torch.arange(25)[:, None]) % 512
    check_batch_invariance(quantise(model, Quant(kv=kv)), rows, "stories260k", [1, 30, 2, 15], (8, 33))


def test_a_bundle_of_it_goes_on_training(trained, data, tmp_path):
    """What its spikes cost, and more, is learnt back in a few plain steps on text of the same kind; k stays."""
    from fastsnn_text import tokenizer_of
    from fastsnn_train import TrainConfig, Trainer, load_data

    model, tokens = trained
    model = load(model_at(model, tmp_path))
    with torch.no_grad():
        before = nats(model(tokens[:, :-1]), tokens)
    text = next((data / "tinystories_text").glob("*.txt")).read_text(encoding="utf-8")[:-40_000]
    (tmp_path / "begin.txt").write_text(text, encoding="utf-8")
    packed = load_data(str(tmp_path / "begin.txt"), tokenizer=tokenizer_of(model), seq_len=128)
    Trainer(model, TrainConfig(max_steps=30, batch_size=8, lr=3e-4), quiet=True).fit(packed)
    with torch.no_grad():
        after = nats(model.eval()(tokens[:, :-1]), tokens)
    assert after < before - 0.05
