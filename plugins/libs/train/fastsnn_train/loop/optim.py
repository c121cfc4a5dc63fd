"""AdamW, parameter groups, learning-rate schedule (warm-up, then cosine, WSD or constant) and EMA of the weights."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import sites
from fastsnn_train.config import TrainConfig
from fastsnn_train.loop.parallel import is_sharded

RATE, WIDTH = 3e-3, 256


def with_learning_rate(config: TrainConfig, model: nn.Module) -> TrainConfig:
    """`config` with ``lr = 0`` replaced by the default ``3e-3 · min(1, 256 / d_model)``.

    Scaling by 1/width keeps the change of hidden activations per step independent of the width (muP, Yang et al. 2022,
    arXiv 2203.03466). A model whose spec has no ``d_model`` gets 3e-3.
    """
    if config.lr:
        return config
    width = getattr(getattr(model, "spec", None), "d_model", WIDTH)
    return attrs.evolve(config, lr=RATE * min(1.0, WIDTH / width))


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); weight decay on tensors of two or more dimensions only.

    Neuron parameters (k, θ) have their own group, without decay, at ``neuron_lr`` times the learning rate; matrices of
    neurons (recurrent weights) another, with decay, at ``recurrent_lr`` times: a step of Adam moves every entry of a
    matrix ``[D,D]`` by as much as lr, so its spectral norm by up to D · lr, and what a recurrent matrix does to a
    gradient it does at every step of the sequence. Raises `FastSNNError` without a trainable parameter.

    On a CPU the fused kernel is used only for matrices with a multiple of 16 columns: it processes the remainder of a
    tensor in scalar code, which may round differently, so that a shard could differ from the whole in the last bit.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise FastSNNError("the model has no parameter that requires a gradient; nothing can be trained")
    integers = [name for name, buffer in model.named_buffers() if buffer.dtype == torch.int8]
    if integers:
        raise FastSNNError(
            f"{integers[0]} is INT8, which has no gradient: train the float bundle that this model was made of"
        )
    for name, p in model.named_parameters():
        if p.is_meta:
            raise FastSNNError(f"{name} is on the meta device: it has a shape but no values; load the weights first")
        if p.is_inference():
            raise FastSNNError(
                f"{name} was made inside torch.inference_mode() and takes no gradients; build or load the model outside"
            )
    mine = {id(p) for p in neuron_parameters(model)}
    groups: dict[tuple[float, float, bool, bool], list[Tensor]] = {}
    for p in trained:
        neuron = id(p) in mine
        decay = config.weight_decay if p.ndim >= 2 else 0.0
        share = (config.recurrent_lr if p.ndim >= 2 else config.neuron_lr) if neuron else 1.0
        fused = p.device.type != "cpu" or (p.ndim >= 2 and p.shape[-1] % 16 == 0)
        groups.setdefault((decay, share, is_sharded(p), fused), []).append(p)
    rows = [
        {"params": found, "weight_decay": decay, "share": share, "lr": config.lr * share, "fused": fused}
        for (decay, share, _, fused), found in groups.items()
    ]
    betas = (float(config.beta1), float(config.beta2))
    return torch.optim.AdamW(rows, lr=config.lr, betas=betas, eps=1e-8, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def neuron_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters of the neurons at the spike sites, such as thresholds."""
    found = {id(p): p for site in sites(model).values() for p in site.parameters() if p.requires_grad}
    return list(found.values())


class PositiveThresholds:
    """Keeps trainable scalar thresholds positive: one step can at most halve them."""

    def __init__(self, model: nn.Module) -> None:
        self.kept = [p for p in neuron_parameters(model) if p.ndim == 0]

    def before(self) -> list[Tensor]:
        """Copies of the thresholds before a step."""
        return [p.detach().clone() for p in self.kept]

    @torch.no_grad()
    def after(self, before: list[Tensor]) -> None:
        """Limit each threshold to at least half of its value before the step."""
        for p, old in zip(self.kept, before):
            p.copy_(torch.where(old > 0, torch.maximum(p, old / 2), p))


class WeightAverage:
    """An exponential moving average of the weights: ``a ← d a + (1 - d) w``, d rising to `decay` over the first steps.

    ``d = min(decay, (1 + n) / (10 + n))`` after n steps, so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the current weights, those after `step` steps."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, p in self.model.named_parameters():
            self.weights[name].lerp_(p.detach(), share)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the model's weights with the average; call it again after evaluation to swap back."""
        for name, p in self.model.named_parameters():
            held = p.detach().clone()
            p.copy_(self.weights[name])
            self.weights[name] = held


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up to `lr`, then the schedule, ending at ``final · lr``.

    WSD keeps the peak, then decays linearly over the last 20 % of the steps after warm-up
    (Hu et al. 2024, arXiv 2404.06395).
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


def parameter_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """AdamW's moments and step counts, keyed by ``{what}/{parameter name}``."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{what}/{names[id(p)]}": value
        for p, row in optimizer.state.items()
        for what, value in row.items()
        if isinstance(value, Tensor)
    }
