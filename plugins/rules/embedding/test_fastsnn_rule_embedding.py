"""Embeddings are kept."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.testing import check_rule
from fastsnn_core.testing import conformance
from fastsnn_rule_embedding import Embedding

test_embedding = conformance("embedding")


def test_an_embedding_is_kept_and_says_why():
    found = check_rule(Embedding(), nn.Embedding(7, 3), torch.tensor([[1, 2], [0, 6]]))
    assert (found.status, found.spikes) == ("kept", "no")
    assert "a row is looked up" in found.note


def test_a_lookup_without_a_module_says_why_it_stays():
    assert "a row is looked up" in Embedding().lift(F.embedding, (), {})
    assert Embedding().lift(F.linear, (), {}) is None
