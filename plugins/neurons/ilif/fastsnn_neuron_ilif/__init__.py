"""Integer leaky integrate-and-fire (I-LIF): non-negative counts up to a few levels."""

from __future__ import annotations

from attrs import frozen

from fastsnn_core import Neuron, Surrogate, hookimpl, param, slot
from fastsnn_leaky.neurons import Leaky

__version__ = "0.1.0"


@frozen
class Ilif(Neuron):
    """H_t = β V_{t-1} + X_t;  C_t = round(clip(H_t / θ, 0, levels));  V_t = H_t - C_t θ.

    Rounding is half to even. x [B,T,D] -> SpikeTensor [B,T,D] with counts 0 … levels and scale θ; state v [B,D] in
    units of θ. Gradient: ∂C/∂H = 1[0 <= H/θ <= levels], through the reset too (see `lif_sint`); published with
    `detach_reset`. Luo et al. 2024 (SpikeYOLO, arXiv 2407.20708).
    """

    name = "ilif"
    beta: float = param(0.25, ge=0.0, lt=1.0, doc="what is left of the membrane after one token")
    threshold: float = param(
        1.0, gt=0.0, le=1e4, unit="mean |x| once calibrated", doc="θ, the height of one count", draw=(0.5, 1.0)
    )
    levels: int = param(4, ge=1, le=32767, unit="spikes", doc="D, the largest count", draw=(1, 4))
    learn_threshold: bool = param(False, doc="train θ")
    detach_reset: bool = param(False, doc="no gradient through the reset, as published")
    surrogate: Surrogate | None = slot(Surrogate, doc="gradient of the count; the window above when left out")

    def build(self, features: int) -> Leaky:
        """The module for `features` channels."""
        return Leaky(
            beta=self.beta, threshold=self.threshold, lo=0.0, hi=float(self.levels),
            attached=not self.detach_reset, surrogate=self.surrogate, learn=self.learn_threshold,
        )  # fmt: skip


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Ilif]
