"""Leaky integrate-and-fire with integer counts (LIF-sINT): signed, several spikes per channel and token."""

from __future__ import annotations

from attrs import frozen

from fastsnn_core import Neuron, Surrogate, hookimpl, param, slot
from fastsnn_leaky.neurons import Leaky

__version__ = "0.1.0"


@frozen
class LifSint(Neuron):
    """u_t = β v_{t-1} + x_t;  c_t = round(clip(u_t / θ, lo, hi));  v_t = u_t - c_t θ.

    lo is -hi, or 0 when unsigned; rounding is half to even. x [B,T,D] -> SpikeTensor [B,T,D], scale θ; state v [B,D]
    in units of θ. Gradient: windowed straight-through (identity for lo <= u/θ <= hi), through the reset too: inside the
    window v is a rounding error, which x does not move, so that x_t gets the gradient of c_t. `detach_reset` leaves the
    reset out, and the gradient of each later count leaks in by β^n: models then learn little beyond word frequencies.
    """

    name = "lif_sint"
    beta: float = param(0.5, ge=0.0, lt=1.0, doc="what is left of the membrane after one token")
    threshold: float = param(
        0.5, gt=0.0, le=1e4, unit="mean |x| once calibrated", doc="θ, the height of one count", draw=(0.5, 1.0)
    )
    hi: int = param(8, ge=1, le=32767, unit="spikes", doc="largest count", draw=(1, 4, 8))
    signed: bool = param(True, doc="counts may be negative, down to -hi")
    learn_threshold: bool = param(False, doc="train θ")
    detach_reset: bool = param(False, doc="no gradient through the reset, as neurons of few spikes have it")
    surrogate: Surrogate | None = slot(Surrogate, doc="gradient of the count; windowed straight-through when left out")

    def build(self, features: int) -> Leaky:
        """The module for `features` channels."""
        return Leaky(
            beta=self.beta, threshold=self.threshold, lo=-float(self.hi) if self.signed else 0.0, hi=float(self.hi),
            attached=not self.detach_reset, surrogate=self.surrogate, learn=self.learn_threshold,
        )  # fmt: skip


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [LifSint]
