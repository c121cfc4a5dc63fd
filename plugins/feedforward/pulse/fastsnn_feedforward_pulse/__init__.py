"""PulseFFN: a feed-forward layer whose input and hidden activations are spikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import Feedforward, SpikeSite, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import FeedforwardForm, Unsupported, lower
from fastsnn_integer import deterministic
from fastsnn_modules.shown import constants

__version__ = "0.1.0"

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "drelu": F.relu,
}


@frozen
class Pulse(Feedforward):
    """s = spikes(x);  h = act(W_g s) ∘ (W_u s)  (ungated: act(W_u s));  y = W_d spikes(h).

    x [B,T,D] -> y [B,T,D] with d_ff hidden channels; the state is that of the two spike sites (``ffn_in``,
    ``ffn_hidden``). With SiLU and gating it is SwiGLU (Shazeer 2020, arXiv 2002.05202), spiking as in SpikingBrain.
    With a `gate_threshold` θ a gate is shut (exactly 0) where |act(W_g s)| < θ, one θ per channel stored with the
    weights: behind a shut gate neither that row of W_u nor that column of W_d need be read (CATS, Lee et al. 2024,
    arXiv 2404.08763; thresholds per channel as in CHESS, arXiv 2409.01366; with ReLU it is FATReLU, ProSparse, arXiv
    2402.13516). ``relu`` and ``relu2`` (squared, Primer, arXiv 2109.08668) shut gates below 0 exactly; ``drelu`` is
    ReLU on gate and up alike (TurboSparse, arXiv 2406.05955). `fit` has l1 for making them rare. Gradient:
    straight-through.
    """

    name = "pulse"
    activation: str = param("silu", choices=tuple(ACTIVATIONS), doc="of the hidden layer")
    gated: bool = param(True, doc="multiply by a second projection (SwiGLU)")
    bias: bool = param(False, doc="biases in the projections")
    gate_threshold: float = param(
        0.0, ge=0.0, doc="gates smaller than this are shut; 0: none. Channels have their own", draw=(0.0, 0.1)
    )
    hidden_norm: float = param(
        0.0, ge=0.0, le=0.1, doc="ε of an RMSNorm in front of the hidden spikes (BitNet); 0: none", draw=(0.0, 1e-5)
    )

    def __attrs_post_init__(self) -> None:
        if self.activation == "drelu" and not self.gated:
            raise FastSNNError("pulse: drelu is ReLU on gate and up, so it needs a gate; set gated = true")
        if self.gate_threshold and not self.gated:
            raise FastSNNError("pulse: gate_threshold needs a gate; set gated = true")

    def build(self, d_model: int, d_ff: int, site: Callable[[str, int], SpikeSite]) -> PulseLayer:
        """The layer; `site` makes its spike sites."""
        return PulseLayer(self, d_model, d_ff, site)


class PulseLayer(nn.Module):
    """``(x, states, reset) -> (y, states)``.

    While the activation is being changed, `toward` names the new one and its share: (1 - t) act + t act'.
    """

    batch_invariant = False
    activations = tuple(ACTIVATIONS)
    gate_threshold: Tensor | None

    def __init__(self, spec: Pulse, d_model: int, d_ff: int, site: Callable[[str, int], SpikeSite]) -> None:
        super().__init__()
        self.become(spec.activation)
        self.toward: tuple[str, float] | None = None
        self.inner, self.hidden = site("ffn_in", d_model), site("ffn_hidden", d_ff)
        self.gate = nn.Linear(d_model, d_ff, bias=spec.bias) if spec.gated else None
        self.up = nn.Linear(d_model, d_ff, bias=spec.bias)
        self.down = nn.Linear(d_ff, d_model, bias=spec.bias)
        shut = torch.full((d_ff,), float(spec.gate_threshold)) if spec.gate_threshold else None
        self.register_buffer("gate_threshold", shut)
        self.hidden_norm = nn.RMSNorm(d_ff, eps=spec.hidden_norm) if spec.hidden_norm else None

    def become(self, activation: str) -> None:
        """Take this activation; drelu is ReLU of the gate and of up."""
        self.activation = "relu" if activation == "drelu" else activation
        self.up_relu = activation == "drelu"

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "activation", "up_relu")

    def lower(self) -> FeedforwardForm:
        """Its sites, projections and activation."""
        if self.toward is not None:
            raise Unsupported(f"its activation is being changed to {self.toward[0]}")
        return FeedforwardForm(
            inner=lower(self.inner, "inner"),
            up=lower(self.up, "up"),
            gate=None if self.gate is None else lower(self.gate, "gate"),
            activation=self.activation,
            hidden=lower(self.hidden, "hidden"),
            down=lower(self.down, "down"),
            gate_threshold=self.gate_threshold,
            up_relu=self.up_relu,
            hidden_norm=None if self.hidden_norm is None else lower(self.hidden_norm, "hidden_norm"),
            state=(None, None),
        )

    def act(self, x: Tensor) -> Tensor:
        """The activation."""
        if self.toward is not None:
            name, share = self.toward
            return torch.lerp(ACTIVATIONS[self.activation](x), ACTIVATIONS[name](x), share)
        return deterministic.unary(x, self.activation) if self.batch_invariant else ACTIVATIONS[self.activation](x)

    def upper(self, x: Tensor) -> Tensor:
        """What the gates are multiplied by."""
        if self.toward is not None:
            share = self.toward[1]
            rectified = (1 - share) * self.up_relu + share * (self.toward[0] == "drelu")
            return torch.lerp(x, F.relu(x), rectified) if rectified else x
        if not self.up_relu:
            return x
        return deterministic.unary(x, "relu") if self.batch_invariant else F.relu(x)

    def gates(self, x: Tensor) -> Tensor:
        """act(x), 0 where the gate is shut."""
        y = self.act(x)
        if self.gate_threshold is None:
            return y
        shut = y.detach().abs() < self.gate_threshold.to(y.dtype)
        return y - (y * shut).detach() if y.requires_grad else y.masked_fill(shut, 0.0)

    def forward(
        self, x: Tensor, state: tuple[Any, Any] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, Any]]:
        """Both spike layers and the projections between them."""
        first, second = state or (None, None)
        spikes, first = self.inner(x, first, reset)
        up = self.upper(self.up(spikes))
        hidden = self.act(up) if self.gate is None else self.gates(self.gate(spikes)) * up
        hidden = hidden if self.hidden_norm is None else self.hidden_norm(hidden)
        spikes, second = self.hidden(hidden, second, reset)
        return self.down(spikes), (first, second)


@hookimpl
def fastsnn_feedforwards() -> list[type[Feedforward]]:
    """This plugin's feed-forward layers."""
    return [Pulse]
