"""`build_model_from_config`: an `SNNConfig` as a model."""

from __future__ import annotations

from torch import nn

from fastsnn.builder.config import SNNConfig
from fastsnn_core import build


def build_model_from_config(config: SNNConfig) -> nn.Module:
    """The network; ``model(tokens [B,T])`` gives next-token logits ``[B,T,vocab_size]``."""
    return build(config.spec())
