"""Rotary position angles, with the scalings that published models use."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import param
from fastsnn_core.errors import FastSNNError

BLOCK = 256
SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn")


@frozen
class Rope:
    """Angle of pair i at position p: p · f_i with f_i = theta^(-2i/K), changed by `scaling`.

    linear: f / factor.  dynamic (NTK): beyond `original` position p turns with the frequencies of length p + 1, theta ·
    (factor (p + 1) / original - factor + 1)^(K / (K - 2)): a token keeps its angle while the stream grows, as when
    transformers decodes with a cache (its full pass turns all tokens by the final length, which no stream can).
    llama3: low frequencies divided by factor, high ones kept, a ramp between.  yarn: the same by rotations over
    `original` tokens (beta_fast … beta_slow), and q·k scaled by (0.1 ln factor + 1)². Sources: Su et al. 2021
    (arXiv 2104.09864); Chen et al. 2023 (2306.15595); Peng et al. 2023 (2309.00071); Llama 3.1's released code.
    """

    theta: float = param(10000.0, gt=1.0, doc="base of the frequencies")
    scaling: str = param("none", choices=SCALINGS, doc="how frequencies change for longer contexts")
    factor: float = param(1.0, ge=1.0, doc="how many times longer")
    original: int = param(0, ge=0, unit="tokens", doc="training length before scaling (dynamic, llama3, yarn)")
    low: float = param(1.0, gt=0.0, doc="llama3's low_freq_factor, or yarn's beta_slow")
    high: float = param(4.0, gt=0.0, doc="llama3's high_freq_factor, or yarn's beta_fast")
    magnitude: float = param(0.0, ge=0.0, doc="yarn's attention factor; 0 means 0.1 ln(factor) + 1")
    share: float = param(
        1.0, gt=0.0, le=1.0, doc="of a head's pairs that turn, the first ones; others have f = 0", draw=(1.0,)
    )
    truncate: bool = param(True, doc="yarn's ramp begins and ends at whole pairs")

    def __attrs_post_init__(self) -> None:
        if self.scaling in ("dynamic", "llama3", "yarn") and not self.original:
            raise FastSNNError(f"rope scaling {self.scaling!r} needs `original`, the length the model was trained at")
        if self.share < 1.0 and self.scaling != "none":
            raise FastSNNError(f"rope scaling {self.scaling!r} turns all pairs of a head; share must be 1")

    def turning(self, width: int) -> int:
        """Channels of a head that turn; an even number."""
        return width if self.share == 1.0 else int(width * self.share) // 2 * 2

    def order(self, width: int) -> Tensor:
        """Where our channels of a head are in models that turn its first channels by pairs (i, i + r/2) of r."""
        half, rest = self.turning(width) // 2, torch.arange(self.turning(width), width)
        first, second = torch.arange(half), torch.arange(half, 2 * half)
        middle = width // 2 - half
        return torch.cat([first, rest[:middle], second, rest[middle:]])

    def frequencies(self, width: int) -> Tensor:
        """f ``[K/2]`` in float64, on the CPU; for dynamic, those up to `original` tokens."""
        with torch.device("cpu"):  # arange on the meta device imports torch's compiler: seconds
            return self.scaled(width)

    def scaled(self, width: int) -> Tensor:
        """`frequencies`, on torch's present device."""
        if (turning := self.turning(width)) < width:
            f = self.theta ** (-torch.arange(0, turning, 2, dtype=torch.float64) / max(1, turning))
            return torch.cat([f, f.new_zeros(width // 2 - turning // 2)])
        if self.scaling == "dynamic" and width < 4:
            raise FastSNNError(f"dynamic rope scaling needs a head_dim of at least 4, got {width}")
        f = self.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        if self.scaling == "linear":
            return f / self.factor
        if self.scaling == "llama3":
            turns = self.original * f / (2 * math.pi)
            keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
            return keep * f + (1 - keep) * f / self.factor
        if self.scaling == "yarn":

            def place(rotations: float) -> float:
                return width * math.log(self.original / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

            first, last = place(self.high), place(self.low)
            if self.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, width - 1)
            ramp = (torch.arange(width // 2, dtype=torch.float64) - first) / (last - first or 1e-3)
            divide = ramp.clamp(0, 1)
            return divide * f / self.factor + (1 - divide) * f
        return f

    @property
    def gain(self) -> float:
        """Factor on cos and sin (yarn's attention scaling)."""
        if self.scaling != "yarn":
            return 1.0
        return self.magnitude or (0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0)

    def angles(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin ``[B,T,K/2]`` of positions ``[B,T]``; float64 inside, so that late positions stay exact."""
        frequencies = frequencies.to(positions.device)
        if self.scaling == "dynamic":
            frequencies = self.grown(positions, frequencies)
        turn = positions[..., None].to(torch.float64) * frequencies
        return turn.cos() * self.gain, turn.sin() * self.gain

    def table(self, blocks: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin ``[blocks · BLOCK, K/2]`` of all positions from 0 on, one block after the other.

        Every block is one computation of the same size, so that a position's angles do not depend on who asks.
        """
        rows = [
            self.angles(torch.arange(i * BLOCK, (i + 1) * BLOCK, device=frequencies.device), frequencies)
            for i in range(blocks)
        ]
        return torch.cat([cos for cos, _ in rows]), torch.cat([sin for _, sin in rows])

    def grown(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        """Dynamic frequencies ``[B,T,K/2]`` of positions ``[B,T]``: f_i · (growth of theta)^(-2i/K)."""
        width = 2 * frequencies.shape[-1]
        length = (positions.to(torch.float64) + 1) / self.original
        growth = (self.factor * length - self.factor + 1).clamp_min(1.0) ** (width / (width - 2))
        pairs = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
        return frequencies * growth[..., None] ** -pairs
