"""Attention is taken apart into projections without changing its value."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.testing import check_rule
from fastsnn_core.testing import conformance
from fastsnn_rule_attention import SOFTMAX, AttentionRule, Encoder, ProjectedAttention

test_attention = conformance("attention")


def apart(module: nn.Module) -> nn.Module:
    """The module and its parts lowered, as the engine does it."""
    module = AttentionRule().lower(module) or module
    for name, child in list(module.named_children()):
        setattr(module, name, apart(child))
    return module.eval()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention(weights, bias, batch_first):
    old = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first).eval().double()
    q, k = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 6, 8, dtype=torch.float64)
    q, k = (q, k) if batch_first else (q.transpose(0, 1), k.transpose(0, 1))
    new = AttentionRule().lower(old)
    wanted, got = old(q, k, k, need_weights=weights), new(q, k, k, need_weights=weights)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-9, atol=1e-9)
    if weights:
        torch.testing.assert_close(got[1], wanted[1], rtol=1e-9, atol=1e-9)
    assert {name for name, m in new.named_modules() if isinstance(m, nn.Linear)} == {"q", "k", "v", "out"}


def test_keys_and_values_of_other_widths():
    old = nn.MultiheadAttention(8, 2, kdim=5, vdim=3, batch_first=True).eval()
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 6, 5), torch.randn(2, 6, 3)
    torch.testing.assert_close(AttentionRule().lower(old)(q, k, v)[0], old(q, k, v)[0])


CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
MASKS = {
    "causal, numbers": {"attn_mask": CAUSAL},
    "causal, booleans": {"attn_mask": CAUSAL != 0},
    "per head": {"attn_mask": (torch.rand(6, 5, 5) < 0.3) & ~torch.eye(5, dtype=torch.bool)},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])},
    "both": {"attn_mask": CAUSAL != 0, "key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3)},
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask):
    torch.manual_seed(1)
    old, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(3, 5, 8)
    torch.testing.assert_close(
        AttentionRule().lower(old)(x, x, x, **MASKS[mask])[0], old(x, x, x, **MASKS[mask])[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder(norm_first, activation):
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, activation, batch_first=True, norm_first=norm_first)
    old = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False).eval()
    x = torch.randn(3, 5, 8)
    wanted = old(x, mask=CAUSAL)
    new = apart(old)
    assert isinstance(new, Encoder)
    assert not any(isinstance(m, nn.MultiheadAttention) for m in new.modules())
    torch.testing.assert_close(new(x, mask=CAUSAL), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_not_covered_is_refused():
    with pytest.raises(ConversionError, match="add_bias_kv or add_zero_attn is not covered"):
        ProjectedAttention(nn.MultiheadAttention(8, 2, add_zero_attn=True))


def test_probabilities_are_kept():
    found = check_rule(AttentionRule(), nn.Softmax(-1), torch.randn(2, 3))
    assert (found.status, found.note) == ("kept", "probabilities are numbers")
    assert AttentionRule().lift(F.scaled_dot_product_attention, (), {}) == SOFTMAX
    assert AttentionRule().lift(torch.relu, (), {}) is None
