"""Leaky integrate-and-fire neuron: one binary spike per channel and token."""

from __future__ import annotations

from attrs import frozen

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky import DelayedLeaky, Leaky
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class Lif(Neuron):
    """u_t = (1 - 1/tau) v_{t-1} + x_t;  s_t = 1[u_t >= θ];  v_t = u_t - s_t θ  (hard reset: v_t = 0 where s_t = 1).

    x [B,T,D] -> SpikeTensor [B,T,D] with counts in {0, 1} and scale θ; state v [B,D] in units of θ. Gradient: the
    surrogate (arctangent with alpha 2 where none is given), reset detached. Lapicque 1907; as
    `LIFNode(decay_input=False)` of SpikingJelly.

    snnTorch's `Leaky(beta=1-1/tau)` delays the reset by a token and fires above θ, not at it: with `reset_delay` the
    spikes are those of `Leaky` at its defaults (u_t = β u_{t-1} + x_t - 1[u_{t-1} > θ] θ;  s_t = 1[u_t > θ]), and the
    state is in units of x. Without it they are those of `Leaky(reset_delay=False, reset_mechanism="zero")` (with
    `hard_reset`) wherever u is not exactly θ; subtracting, snnTorch asks for 2 θ after a step that left more than θ.

    `convention` names a peer whose spikes are to come out, with its θ fixed: "snntorch" is ``Leaky(beta=1-1/tau)``
    (`reset_delay`), "spikingjelly" is ``LIFNode(tau)`` at its defaults but for the reset: u_t = v + (x_t - v)/tau, and
    v_reset = 0 where `hard_reset`, else None. Without a leak (`leaky` = false) it is the integrate-and-fire neuron:
    u_t = v_{t-1} + x_t, in every convention.
    """

    name = "lif"
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    threshold: float = threshold_param()
    hard_reset: bool = param(False, doc="set the membrane to 0 after a spike instead of subtracting θ")
    reset_delay: bool = param(False, doc="reset one token later and fire above θ only, as snnTorch's Leaky does")
    convention: str = param(
        "fastsnn", choices=("fastsnn", "snntorch", "spikingjelly"), doc="whose neuron this is, spike for spike"
    )
    leaky: bool = param(True, doc="false: β = 1, nothing leaks and tau is not used (integrate and fire)")
    fixed: bool = fixed_param()
    learn_threshold: bool = param(False, doc="train θ")
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> Leaky:
        """The module for `features` channels."""
        kind = DelayedLeaky if self.reset_delay or self.convention == "snntorch" else Leaky
        return kind(
            beta=1.0 - 1.0 / self.tau if self.leaky else 1.0,
            threshold=self.threshold, lo=0.0, hi=1.0, heaviside=True, hard=self.hard_reset,
            surrogate=self.surrogate, default=("atan", 2.0), learn=self.learn_threshold,
            fixed=self.fixed or self.convention != "fastsnn",
            gain=1.0 / self.tau if self.convention == "spikingjelly" and self.leaky else 1.0,
        )  # fmt: skip


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Lif]
