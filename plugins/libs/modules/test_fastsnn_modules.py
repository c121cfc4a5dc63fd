"""The front doors refuse what does not fit, and say which and where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastsnn_core.state import StateError
from fastsnn_modules.inputs import TokenError, check_token_ids, membrane_state, neuron_input, token_input
from fastsnn_modules.operands import OperandError, Operands, OperandTypeError
from fastsnn_modules.shown import constants

SCAN = Operands("scan", "x [B,T,D] float", "v [B,D] as x", "keep [B,T] bool or empty")


def test_operands_that_fit_give_their_sizes():
    x, v = torch.zeros(2, 3, 4), torch.zeros(2, 4)
    assert SCAN(x, v, torch.zeros(0, 0, dtype=torch.bool)) == {"B": 2, "T": 3, "D": 4}


@pytest.mark.parametrize(
    ("v", "keep", "error", "says"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 3, dtype=torch.bool), OperandError, r"v is \[2, 5\], but D = 4"),
        (torch.zeros(2, 4).double(), torch.zeros(2, 3, dtype=torch.bool), OperandTypeError, "v must be float32"),
        (torch.zeros(2, 4), torch.zeros(2, 3), OperandTypeError, "keep must be bool"),
        ([0.0], torch.zeros(2, 3, dtype=torch.bool), OperandTypeError, "v must be a tensor, got list"),
    ],
)
def test_operands_that_do_not_fit_are_named(v, keep, error, says):
    with pytest.raises(error, match=says):
        SCAN(torch.zeros(2, 3, 4), v, keep)


def test_a_state_of_other_streams_is_refused():
    x = neuron_input("lif", torch.zeros(2, 3, 4, dtype=torch.bfloat16), None, None)
    assert x.dtype == torch.float32
    with pytest.raises(StateError, match="of 3 streams"):
        membrane_state("lif", x, torch.zeros(3, 4))
    with pytest.raises(OperandError, match=r"must be \[B, T, D\]"):
        neuron_input("lif", torch.zeros(3, 4), None, None)


def test_a_token_without_a_row_is_named():
    with pytest.raises(TokenError, match="token id 7 at row 0, position 1 is outside"):
        check_token_ids(torch.tensor([[1, 7]]), 7)
    with pytest.raises(TokenError, match="a batch of one is ids"):
        token_input(torch.tensor([1, 2]), 7)
    assert token_input(torch.tensor([[1, 2]], dtype=torch.uint8), 7).dtype == torch.int64


def test_constants_are_short():
    module = nn.Module()
    module.k, module.top, module.off = 3.0, torch.tensor(0.25), None
    assert constants(module, "k", "top", "off") == "k=3, top=0.25"
