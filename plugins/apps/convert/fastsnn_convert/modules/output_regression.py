"""Healing of converted modules: the spiking network learns the dense one's outputs on data without labels.

    loss = ‖y - y₀‖² / ‖y₀ - mean y₀‖²        y₀: the outputs of the dense network

Adam with a cosine to zero; gradients pass the counts straight through, thresholds stay where calibration put them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastsnn_convert.output_distance import flat_outputs


def distil(
    network: nn.Module,
    wanted: Tensor,
    data: tuple[Tensor, ...],
    steps: int,
    *,
    lr: float = 1e-3,
    batch: int = 128,
    seed: int = 0,
) -> list[float]:
    """Train `network` in place for `steps` steps of `batch` samples of `data`; returns the losses.

    `wanted` ``[N, …]`` are the dense outputs (`fastsnn_convert.output_distance.output`). The network is in evaluation
    mode: no dropout, and batch norms keep their statistics.
    """
    power = float((wanted - wanted.mean(0)).pow(2).mean()) or 1.0
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr)
    generator, losses = torch.Generator().manual_seed(seed), []
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(0, len(wanted), (min(batch, len(wanted)),), generator=generator)
            rows = rows.to(wanted.device)
            loss = (flat_outputs(network(*(x[rows] for x in data)), len(rows)) - wanted[rows]).pow(2).mean() / power
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    optimizer.zero_grad()
    return losses
