"""The conformance kit over this plugin."""

import pytest
import torch

from fastsnn_core.errors import FastSNNError
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


def test_learned_positions_are_added_and_end_somewhere():
    with pytest.raises(FastSNNError, match="a text of one token"):
        Decoder(learned_positions=1)
    model = Decoder(vocab_size=17, d_model=16, n_layers=1, n_heads=2, learned_positions=5).build().eval()
    tokens = torch.tensor([[3, 3, 3, 3, 3]])
    with torch.no_grad():
        whole = model(tokens)
        first, state = model(tokens[:, :2], return_state=True)
        rest, state = model(tokens[:, 2:], state, return_state=True)
        torch.testing.assert_close(torch.cat([first, rest], 1), whole)
        model.positions[4] += 1.0
        assert not torch.equal(model(tokens)[:, 4], whole[:, 4])
        torch.testing.assert_close(model(tokens)[:, :4], whole[:, :4])
        with pytest.raises(FastSNNError, match="learned 5 positions"):
            model(tokens[:, :1], state)
