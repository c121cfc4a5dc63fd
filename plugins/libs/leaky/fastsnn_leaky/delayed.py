"""The leaky neuron in snnTorch's convention: the reset comes one token later, after the decay.

    reset_t = 1[m_{t-1} > θ]        m_t = (β m_{t-1} + x_t) - reset_t θ        s_t = 1[m_t > θ]

(``reset_mechanism="zero"``: m_t = β (1 - reset_t) m_{t-1} + x_t.) So a spike costs θ of the *next* membrane, where
`fastsnn_leaky.neurons` subtracts it at once and lets it decay: β θ. The comparison is strict. These are the operations
of ``snntorch.Leaky`` at its defaults (``reset_delay=True``) in its order, so spikes are equal, token by token; with
``reset_delay=False`` it is the neuron of `fastsnn_leaky.neurons` but for a membrane exactly at the threshold. The reset
is detached, as there. A loop over T in torch: several times slower than the compiled scan.

Shapes: x ``[B,T,D]``; state m ``[B,D]``, in units of the input; reset ``[B,T]``. Source: snnTorch 1.0, ``Leaky``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsnn_core import ops
from fastsnn_core.ops.surrogate_gradient import derivative
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_leaky.neurons import Leaky
from fastsnn_modules.inputs import membrane_state, neuron_input


class DelayedLeaky(Leaky):
    """``(x, m, reset) -> (SpikeTensor, m)``; see the module's equation."""

    within_step: Any = None  # learning online goes step by step
    clears_input = False  # the reset to zero takes what came in with it, as in snnTorch's Synaptic

    def walk(self, x: Tensor, state: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Membranes ``[B,T,D]`` and the last one ``[B,D]``."""
        x = neuron_input("a leaky neuron", x, state, reset)
        m, theta, seen = membrane_state("a leaky neuron", x, state), self.theta.to(x.dtype), []
        for t in range(x.shape[1]):
            if reset is not None:
                m = torch.where(reset[:, t, None], torch.zeros_like(m), m)
            fired = (m > theta).to(x.dtype).detach()
            if self.clears_input:
                m = (self.beta * m + x[:, t]) * (1 - fired)
            else:
                m = self.beta * (m * (1 - fired)) + x[:, t] if self.hard else self.beta * m + x[:, t] - fired * theta
            seen.append(m)
        return (torch.stack(seen, 1) if seen else torch.empty_like(x)), m

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[SpikeTensor, Tensor]:
        """Spikes of `x` and the membrane to carry on with."""
        m, last = self.walk(x, state, reset)
        theta = self.theta.to(m.dtype)
        soft = ops.count(m / theta, 0.0, 1.0, heaviside=True, slope=self.derivative)
        hard = torch.where(m > theta, 1.0, torch.where(m <= theta, 0.0, m)).detach().to(m.dtype)  # NaN stays NaN
        return SpikeTensor(hard + (soft - soft.detach()).nan_to_num(0.0), theta), last

    def derivative(self, u: Tensor) -> Tensor:
        """Stand-in derivative of the spike, of membranes in thresholds."""
        if callable(self.slope):
            return self.slope(u, 1.0, 1.0)
        form, alpha = self.slope
        return derivative(u, form, alpha, 1.0, 1.0)

    @torch.no_grad()
    def potential(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> Tensor:
        """u ``[B,T,D]`` before each spike, in thresholds; one exactly at the threshold is below it."""
        m = self.walk(x, state, reset)[0]
        theta = self.theta.to(m.dtype)
        u, one = m / theta, torch.ones((), dtype=m.dtype, device=m.device)
        below, above = torch.nextafter(one, 0 * one), torch.maximum(u, one)
        return torch.where(m > theta, above, torch.minimum(u, below))
