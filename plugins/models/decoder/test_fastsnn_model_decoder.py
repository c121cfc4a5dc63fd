"""The conformance kit over this plugin."""

import pytest
import torch

from fastsnn_core.testing import conformance
from fastsnn_integer.quantization import quantise
from fastsnn_model_decoder import Decoder

test_decoder = conformance("decoder")


@pytest.mark.parametrize("mode", ["count", "event"])
@pytest.mark.parametrize("quantised", [False, True])
def test_last_gives_the_last_logits_also_behind_spikes(mode, quantised):
    model = Decoder(vocab_size=17, d_model=16, n_layers=1, n_heads=2, sites=("ffn_in", "head")).build().eval()
    model = quantise(model) if quantised else model
    model.runtime(mode)
    tokens = model.spec.example(3)
    with torch.no_grad():
        whole, last = model(tokens), model(tokens, last=True)
    if quantised:
        assert torch.equal(whole[:, -1:], last)
    torch.testing.assert_close(whole[:, -1:], last)
