"""The optimiser and its schedule: AdamW with decoupled decay on matrices, warm-up, then cosine, WSD or constant."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastsnn_train.config import TrainConfig


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); weight decay on tensors of two or more dimensions only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires a gradient; nothing can be trained")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=betas, eps=1e-8, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of a step (from 0): linear warm-up to `lr`, then the schedule, ending at ``final · lr``.

    wsd keeps the peak until the last fifth and falls linearly there (Hu et al. 2024, arXiv 2404.06395).
    """
    warm = max(1, round(config.warmup * config.max_steps))
    if step < warm and config.warmup:
        return config.lr * (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, config.max_steps - warm - 1))
    if config.schedule == "constant":
        factor = 1.0
    elif config.schedule == "cosine":
        factor = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share))
    else:
        factor = 1.0 if share < 0.8 else 1.0 - (1 - config.final) * (share - 0.8) / 0.2
    return config.lr * factor
