"""The kit over this plugin; then counts, events, calibration, fused decoding, serving, none of which know its name."""

from __future__ import annotations

import pytest
import torch
from acme_rms_threshold import RmsThreshold

from fastsnn_core.testing import conformance

test_rms_threshold = conformance("rms_threshold")


@pytest.fixture(scope="module")
def model():
    from fastsnn_core import Model
    from fastsnn_core.spec import converter
    from fastsnn_integer.quantization import quantise

    pytest.importorskip("fastsnn_model_decoder")
    torch.manual_seed(0)
    table = {"kind": "decoder", "vocab_size": 257, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 40}
    built = converter().structure(table | {"neuron": {"kind": "rms_threshold", "k": 2.0}}, Model).build()
    return quantise(built).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 257, (1, 48), generator=torch.Generator().manual_seed(1))


def test_counts_have_the_root_mean_square_that_k_says():
    x = torch.randn(2, 3, 4000)
    spikes, _ = RmsThreshold(k=3.0).build(4000)(x)
    assert torch.allclose(spikes.counts.square().mean(-1).sqrt(), torch.tensor(3.0), atol=0.05)
    clipped, _ = RmsThreshold(k=3.0, limit=2).build(4000)(x)
    assert float(clipped.counts.abs().max()) == 2.0


@torch.inference_mode()
def test_events_and_replay_give_the_bits_of_counts(model, tokens):
    from fastsnn_events import runtime

    wanted = model(tokens)
    model.runtime("event")
    assert torch.equal(model(tokens), wanted)
    assert torch.equal(runtime.replay(model, tokens[:, :8]).output, wanted[:, :8])
    model.runtime("count")


@torch.inference_mode()
def test_the_fused_step_and_the_prompt_kernels_take_it(model, tokens):
    pytest.importorskip("fastsnn_kernel_numba")
    from fastsnn_core import ops

    with ops.use("naive"):
        wanted = model(tokens)
    assert torch.equal(model(tokens), wanted)
    stream = model.fast(model(tokens[:, :5], return_state=True)[1])
    assert model.fast_step == {"kernel": "numba", "why": "every part of the model has a fused form"}
    for t in range(5, 48):
        assert torch.equal(stream.step(int(tokens[0, t])), wanted[0, t])


def test_calibration_asks_it_for_its_threshold():
    pytest.importorskip("fastsnn_convert")
    from fastsnn_convert.language.balance import balance

    torch.manual_seed(0)
    x, cost = torch.randn(256, 16), torch.ones(16)
    x[:, 3] *= 30.0  # an outlier channel, which wants a factor
    found = balance(x, cost, RmsThreshold().build(16), torch.arange(16), False, steps=60)
    assert found.after < 0.6 * found.before
    assert found.s[3] > 3 * found.s[0]


def test_the_server_answers_with_the_tokens_of_generate(model):
    serve = pytest.importorskip("fastsnn_serve")
    client = pytest.importorskip("starlette.testclient")
    text = pytest.importorskip("fastsnn_text")
    from fastsnn_core import ops

    text.attach(model, text.ByteTokenizer())
    with ops.use("naive"):
        ids = list(text.generate_ids(model, [72, 105], 8, text.Sampling(temperature=0.0)))
    with client.TestClient(serve.app(model)) as http:
        asked = {"prompt": "Hi", "max_tokens": 8, "temperature": 0}
        answer = http.post("/v1/completions", json=asked).json()
    assert answer["choices"][0]["text"] == text.ByteTokenizer().decode(ids)
