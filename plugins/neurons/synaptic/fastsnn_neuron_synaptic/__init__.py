"""Current-based leaky integrate-and-fire neuron (CubaLIF): the input decays, too."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import StateError, belongs
from fastsnn_leaky import DelayedLeaky, Leaky
from fastsnn_leaky.decay import decayed, decayed_in_order
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param
from fastsnn_modules.inputs import check_state_kind, membrane_state, neuron_input

__version__ = "0.1.0"


@frozen
class Synaptic(Neuron):
    """i_t = α i_{t-1} + x_t;  u_t = β v_{t-1} + i_t;  s_t = 1[u_t >= θ];  v_t = u_t - s_t θ  (hard reset: v_t = 0).

    α = 1 - 1/tau_synapse, β = 1 - 1/tau. x [B,T,D] -> SpikeTensor [B,T,D] with counts in {0, 1} and scale θ; state
    (i, v). The current is linear in x and is summed by doubling in training, else in order; the membrane is the
    compiled scan of `lif`. With ``convention = "snntorch"`` the spikes are those of ``Synaptic(alpha, beta)`` of
    snnTorch at its defaults (the reset a token later, a spike where u > θ, θ fixed). CubaLIF of NIR with unit gains;
    Gerstner & Kistler 2002.
    """

    name = "synaptic"
    tau_synapse: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="time constant of the current")
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    hard_reset: bool = param(False, doc="set the membrane to 0 after a spike instead of subtracting θ")
    convention: str = param("fastsnn", choices=("fastsnn", "snntorch"), doc="whose neuron this is, spike for spike")
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> SynapticCell:
        """The module for `features` channels."""
        return SynapticCell(self)


class SynapticCell(nn.Module):
    """The module of a `Synaptic`: a leaky sum in front of a leaky neuron."""

    lo, hi = 0.0, 1.0

    def __init__(self, how: Synaptic) -> None:
        super().__init__()
        self.alpha, self.fixed = 1 - 1 / how.tau_synapse, how.fixed or how.convention == "snntorch"
        kind = DelayedLeaky if how.convention == "snntorch" else Leaky
        self.inner = kind(
            beta=1 - 1 / how.tau, threshold=how.threshold, lo=0.0, hi=1.0, heaviside=True, hard=how.hard_reset,
            surrogate=how.surrogate, default=("atan", 2.0), fixed=self.fixed,
        )  # fmt: skip
        if isinstance(self.inner, DelayedLeaky):
            self.inner.clears_input = how.hard_reset

    def extra_repr(self) -> str:
        """Its constants."""
        return f"alpha={self.alpha:.6g}"

    @property
    def theta(self) -> Tensor:
        """The threshold."""
        return self.inner.theta

    def calibrate_(self, x: Tensor) -> None:
        """Set θ from data: `threshold` times the mean magnitude of the input; a `fixed` one stays."""
        if not self.fixed:
            self.inner.calibrate_(x)

    def current(self, x: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """i ``[B,T,D]``, and the membrane to start from."""
        x = neuron_input("a synaptic neuron", x, None, reset)
        check_state_kind("a synaptic neuron", state, tuple, "a tuple (i, v)")
        belongs("a synaptic neuron", state, x.shape[0])
        if state is not None and len(state) != 2:
            raise StateError(f"a synaptic neuron: the state is (i, v), each [B,D]; got {len(state)} parts")
        before, v = (None, None) if state is None else state
        total = decayed if self.training else decayed_in_order
        return total(x, membrane_state("a synaptic neuron", x, before), self.alpha, reset), v

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[SpikeTensor, Any]:
        """Spikes of `x` and the state to carry on with."""
        current, v = self.current(x, state, reset)
        spikes, v = self.inner(current, v, reset)
        last = current[:, -1] if current.shape[1] else membrane_state("a synaptic neuron", x, state and state[0])
        return spikes, (last, v)

    def potential(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> Tensor:
        """u ``[B,T,D]`` before each spike, in thresholds."""
        current, v = self.current(x, state, reset)
        return self.inner.potential(current.detach(), v, reset)

    def membrane(self, x: Tensor, state: Any = None) -> Tensor:
        """The same in units of the input: for pictures."""
        return self.potential(x, state) * self.theta.detach().to(x.dtype)

    def drive(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, float]:
        """Potentials as they are counted, and the level of the spike."""
        return self.potential(x, state, reset).clamp(0.0, 1.0), 1.0


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Synaptic]
