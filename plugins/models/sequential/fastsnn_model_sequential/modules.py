"""Modules that torch.nn has no single name for: batch norm of any rank; time: where it begins, what sums over it."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.spike_layers import Dropout
from fastsnn_conversion.time_folding import running_pass
from fastsnn_core.component import Coder
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor, densify
from fastsnn_leaky.decay import decayed, decayed_in_order


class AnyRankBatchNorm(nn.BatchNorm1d):
    """Statistics per channel (dimension 1) of ``[N, C, …]``, whatever the rank; β from ±`spread` at first.

    Channels that see few inputs are alike behind a batch norm (of one input: x̂ or -x̂ for every weight), so neurons
    there would all spike at once; a spread of β gives each a level of its own.
    """

    converts_as = nn.BatchNorm1d

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        tracked: bool = True,
        spread: float = 0.0,
    ) -> None:
        if spread and not affine:
            raise FastSNNError(f"spread = {spread:g} is of a batch norm's β, which affine = false leaves out")
        self.spread = spread
        super().__init__(features, eps, momentum, affine, tracked)

    def reset_parameters(self) -> None:
        """γ = 1, β from ±spread."""
        super().reset_parameters()
        if self.spread:
            nn.init.uniform_(self.bias, -self.spread, self.spread)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return super().extra_repr() + (f", spread={self.spread:g}" if self.spread else "")

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise FastSNNError(f"batch norm needs [N, C, …], got {tuple(input.shape)}")


class ThresholdBatchNorm(AnyRankBatchNorm):
    """tdBN: γ (x - μ) / √(σ² + ε) + β with γ = α θ at first, μ and σ per channel over batch, steps and places.

    `alpha` is 1 in a chain and 1/√n where n branches are added, `threshold` θ that of the neurons behind it: inputs
    of standard deviation α θ neither silence nor saturate a deep network. Zheng et al. 2021 (arXiv 2011.05280).
    """

    def __init__(self, features: int, eps: float, momentum: float, alpha: float, threshold: float) -> None:
        self.alpha, self.threshold = alpha, threshold
        super().__init__(features, eps, momentum)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{super().extra_repr()}, alpha={self.alpha:g}, threshold={self.threshold:g}"

    def reset_parameters(self) -> None:
        """γ = α θ, β = 0."""
        super().reset_parameters()
        nn.init.constant_(self.weight, self.alpha * self.threshold)


class TimeFixedDropout(Dropout):
    """Dropout with one mask for all steps of a sequence: ``[B·T, …]``; state: the mask ``[B, …]``, while training.

    A channel that is dropped for one step and not for the next tells a membrane, which averages over steps, little.
    """

    keeps_state = True

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.label = ""

    def within_step(self, input: Any) -> Any:
        """`forward`: a mask has no gradient over time."""
        return type(self).forward(self, input)

    def forward(self, input: Any) -> Any:
        """Drops the same channels of a sequence at every step, in training."""
        stream = running_pass()
        if not self.training or not self.p or stream is None or not stream.timed:
            return super().forward(input)
        steps, mask = (stream.batch, stream.time), stream.old.get(self.label)
        if mask is None:
            mask = torch.rand(stream.batch, *input.shape[1:], device=input.device) >= self.p
        stream.new[self.label] = mask
        keep = mask[:, None].expand(*steps, *input.shape[1:]).flatten(0, 1)
        if isinstance(input, SpikeTensor):
            return SpikeTensor(input.counts * keep, input.scale / (1.0 - self.p))
        return input * keep / (1.0 - self.p)


class TimeMean(nn.Module):
    """Mean over the tokens T of the running pass: ``[B·T, …] -> [B, …]``; the input itself where there is no time."""

    def forward(self, x: Tensor) -> Tensor:
        """Averages, and tells the pass that time is gone."""
        stream, x = running_pass(), densify(x)
        if stream is None or stream.pooled:
            return x
        out = x.reshape(stream.batch, stream.time, *x.shape[1:]).mean(1)
        stream.time, stream.reset, stream.pooled = 1, None, True
        return out


class TimeBegins(nn.Module):
    """A sample shown for T steps: ``[B, …] -> [B·T, …]``; what has a time already passes as it is.

    Without a coder every step sees the same values (direct coding: what stands before this layer is computed once, and
    is the learnt encoder). A coder writes them as a train of T steps; what it draws at random is drawn anew with every
    batch while training, and is the same at every call in evaluation.
    """

    begins_time = True

    def __init__(self, steps: int, coder: Coder | None = None) -> None:
        super().__init__()
        self.steps, self.coder = steps, coder
        if coder is not None and (coder.lossless or coder.over_time):
            what = "signals that have a time" if coder.over_time else "counts"
            raise FastSNNError(f"encode takes a coder of values in [0, 1] (rate, latency); {coder.name} codes {what}")

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"steps={self.steps}" + (f", coder={self.coder.name}" if self.coder is not None else "")

    def forward(self, x: Tensor) -> Tensor:
        """The sample at every step."""
        stream, x = running_pass(), densify(x)
        if stream is None or stream.timed:
            return x
        stream.begin(self.steps)
        return x.repeat_interleave(self.steps, 0) if self.coder is None else self.show(x).flatten(0, 1)

    def show(self, x: Tensor) -> Tensor:
        """What the network sees of ``x [B, …]`` at every step, ``[B, T, …]``."""
        if self.coder is None:
            return x[:, None].expand(-1, self.steps, *x.shape[1:])
        coder: Any = self.coder
        if self.training and hasattr(coder, "seed"):
            coder = attrs.evolve(coder, seed=int(torch.randint(1 << 31, ())))
        return coder.encode(x, self.steps).train.to(x.dtype).transpose(0, 1)


class TimeDifference(nn.Module):
    """A signal as what changed since the step before, in a coder's units: ``[B·T, …] -> counts [B·T, …]``.

    State: the last value ``[B, …]``. A new sequence starts from 0.
    """

    keeps_state = True

    def __init__(self, coder: Coder) -> None:
        super().__init__()
        self.coder, self.label = coder, ""
        if not coder.over_time:
            raise FastSNNError(f"difference takes a coder of signals over time (delta); {coder.name} is none")

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"coder={self.coder.name}"

    def forward(self, x: Tensor) -> Tensor:
        """Counts."""
        stream, x = running_pass(), densify(x)
        if stream is None or not stream.timed:
            return self.counts(x[:, None])[:, 0]
        signal = x.reshape(stream.batch, stream.time, *x.shape[1:])
        before = stream.old.get(self.label)
        before = torch.zeros_like(signal[:, 0]) if before is None else before
        found = self.counts(torch.cat([before[:, None], signal], 1))[:, 1:]
        if stream.reset is not None:
            marks = stream.reset.reshape(*stream.reset.shape, *[1] * (signal.ndim - 2))
            found = torch.where(marks, self.counts(x[:, None]).reshape(found.shape), found)
        stream.new[self.label] = signal[:, -1]
        return found.flatten(0, 1)

    def counts(self, signal: Tensor) -> Tensor:
        """Of ``[B,T,…]``."""
        return self.coder.encode(signal).counts.to(signal.dtype)


class LeakyReadout(nn.Module):
    """A leaky integrator that never spikes: y_t = β y_{t-1} + (1 - β) x_t, ``[B·T, …] -> [B·T, …]``; the identity
    where there is no time. β = 1 - 1/tau, learnt on request (through its logit). State: y ``[B, …]``.
    """

    keeps_state = True

    def __init__(self, tau: float, learn: bool = False) -> None:
        super().__init__()
        if tau <= 1:
            raise FastSNNError(f"integrate needs tau > 1, got {tau:g}")
        self.tau, self.learn, self.label = tau, learn, ""
        logit = torch.tensor(math.log(tau - 1))  # σ(logit) = 1 - 1/tau
        if learn:
            self.logit = nn.Parameter(logit)
        else:
            self.register_buffer("logit", logit)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"tau={self.tau:g}, learn={self.learn}"

    def forward(self, x: Tensor) -> Tensor:
        """The integral at every step."""
        stream, x = running_pass(), densify(x)
        if stream is None or not stream.timed:
            return x
        signal = x.reshape(stream.batch, stream.time, *x.shape[1:])
        before = stream.old.get(self.label)
        start = torch.zeros_like(signal[:, 0]) if before is None else before
        beta = self.logit.to(x.dtype).sigmoid()
        total = decayed if self.training else decayed_in_order
        found = total((1 - beta) * signal, start, beta, stream.reset)
        stream.new[self.label] = found[:, -1]
        return found.flatten(0, 1)

    def within_step(self, x: Tensor) -> Tensor:
        """What `forward` gives, with the gradient of every step's own input alone: for rules that learn online."""
        with torch.no_grad():
            found = type(self).forward(self, x)
        stream, x = running_pass(), densify(x)
        if stream is None or not stream.timed:
            return x
        signal, rows = (z.reshape(stream.batch, stream.time, *z.shape[1:]) for z in (x, found))
        start = stream.old.get(self.label)
        before = torch.cat(
            [torch.zeros_like(rows[:, :1]) if start is None else start.detach()[:, None], rows[:, :-1]], 1
        )
        if stream.reset is not None:
            marks = stream.reset.reshape(*stream.reset.shape, *[1] * (signal.ndim - 2))
            before = torch.where(marks, torch.zeros_like(before), before)
        beta = self.logit.to(x.dtype).sigmoid()
        return (beta * before + (1 - beta) * signal).flatten(0, 1)
