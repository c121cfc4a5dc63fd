"""`Cell`: neurons whose time loop depends on their own spikes; a cell says what one step does, once, in torch.

The loop, resets, the surrogate, the states and their checks are here. Everything is in units of the threshold θ: u = 1
is where a spike is. State: a tuple of tensors ``[B,D]``, zeros at first.

Where a kernel set has `cell_scan` (`numba` on CPU), the step is written down once a call (`cell_tape`), and its scan
and its gradient are compiled. A step with a matrix product has a scan of its own (`recurrent_scan`). One that does what
has no row operation, or that torch's compiler, torch.func or an export looks at, is a loop over T in torch whose
gradient is autograd's; `ops.paths` and `ops.dispatch.reasons` say which, and why. So a step must have no effect but its
results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import ops
from fastsnn_core.component import Surrogate
from fastsnn_core.ops.dispatch import kernels, record_path
from fastsnn_core.ops.surrogate_gradient import derivative
from fastsnn_core.site import FULL, keeping_float32
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import StateError, belongs
from fastsnn_leaky.cell_adjoint import programs_of
from fastsnn_leaky.cell_scan import CELL_SCAN, cell_scan
from fastsnn_leaky.cell_tape import NotTraceable, TracedRow, record_step
from fastsnn_modules.inputs import check_state_kind, check_state_tensor, neuron_input
from fastsnn_modules.operands import OperandError, OperandTypeError
from fastsnn_modules.over_time import exporting, over_time
from fastsnn_modules.shown import constants

Row = tuple[Tensor, ...]


class Cell(nn.Module):
    """``(x [B,T,D], state, reset [B,T]) -> (SpikeTensor [B,T,D] of 0 and 1, state)``; a subclass gives `step`."""

    theta: Tensor
    who = "a cell"
    parts: tuple[str, ...] = ("v",)
    shown_as: tuple[str, ...] = ()
    lo, hi, heaviside = 0.0, 1.0, True
    batch_invariant = True
    features: int | None = None  # channels, where a cell has weights for so many

    def __init__(self, threshold: float, surrogate: Surrogate | None = None, fixed: bool = False) -> None:
        super().__init__()
        self.threshold, self.fixed = threshold, fixed
        self.register_buffer("theta", torch.tensor(float(threshold)))
        self.slope: Any = ("atan", 2.0) if surrogate is None else surrogate.code() or surrogate.derivative

    def _apply(self, fn: Any, recurse: bool = True) -> Cell:
        """Constants stay float32 when they would be half precision."""
        keeping_float32(self, lambda: super(Cell, self)._apply(fn, recurse))
        return self

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "theta", *self.shown_as)

    def calibrate_(self, x: Tensor) -> None:
        """Set θ from data: `threshold` times the mean magnitude of `x`; a `fixed` one stays."""
        if not self.fixed:
            with torch.no_grad():
                self.theta.copy_(self.threshold * x.detach().abs().mean().clamp_min(1e-8))

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """Potential u ``[B,D]`` with the threshold at 1, spikes, and the new state; `x` is in thresholds."""
        raise NotImplementedError("abstract")

    def spike(self, u: Tensor) -> Tensor:
        """1[u >= 1], with the surrogate's gradient."""
        if isinstance(u, TracedRow):
            return u.spike(self.derivative)
        return ops.count(u, 0.0, 1.0, heaviside=True, slope=self.derivative)

    def derivative(self, u: Tensor) -> Tensor:
        """Stand-in derivative of a spike."""
        if callable(self.slope):
            return self.slope(u, 1.0, 1.0)
        form, alpha = self.slope
        return derivative(u, form, alpha, 1.0, 1.0)

    def begin(self, x: Tensor, state: Any) -> Row:
        """The state to start from."""
        check_state_kind(self.who, state, tuple, f"a tuple ({', '.join(self.parts)})")
        belongs(self.who, state, x.shape[0])
        if self.features not in (None, x.shape[2]):
            raise OperandError(f"{self.who}: it has weights for {self.features} channels, the input has {x.shape[2]}")
        if self.theta.device != x.device:
            raise OperandTypeError(
                f"{self.who}: the input is on {x.device} and its constants on {self.theta.device}; move one of them"
            )
        if state is None:
            return tuple(x.new_zeros(x.shape[0], x.shape[2]) for _ in self.parts)
        for s in state:
            check_state_tensor(self.who, x, s)
        if len(state) != len(self.parts) or any(s.shape != (x.shape[0], x.shape[2]) for s in state):
            found = ", ".join(str(list(s.shape)) for s in state)
            raise StateError(f"{self.who}: the state is ({', '.join(self.parts)}), each [B,D]; got {found}")
        return tuple(s if s.dtype == torch.float64 else s.to(x.dtype) for s in state)  # never narrowed on the way

    def walk(self, x: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Tensor, Row]:
        """Potentials and spikes ``[B,T,D]``, and the last state."""
        x = neuron_input(self.who, x, None, reset)
        row, seen, spikes = self.begin(x, state), [], []
        scaled = x / self.theta.to(x.dtype)
        if exporting(x) and reset is None:

            def token(old: Row, now: Row) -> tuple[Row, Row]:
                u, s, new = self.step(now[0], old)
                return new, (u, s)

            row, (u, s) = over_time(token, row, (scaled,))
            return u, s, row
        if (found := self.compiled(scaled, row, reset)) is not None:
            return found
        for t in range(x.shape[1]):
            if reset is not None:
                row = tuple(torch.where(reset[:, t, None], torch.zeros_like(s), s) for s in row)
            u, s, row = self.step(scaled[:, t], row)
            seen.append(u)
            spikes.append(s)
        empty = x.new_zeros(x.shape[0], 0, x.shape[2])
        return (torch.stack(seen, 1), torch.stack(spikes, 1), row) if seen else (empty, empty, row)

    def compiled(self, x: Tensor, row: Row, reset: Tensor | None) -> tuple[Tensor, Tensor, Row] | None:
        """What `walk` gives of `x` in thresholds, by `compiled_steps`; None where it is to be the loop."""
        found = compiled_steps(self.step, x, row, reset)
        return None if found is None else (*found[0], found[1])

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[SpikeTensor, Row]:
        """Spikes of `x` and the state to carry on with."""
        _, spikes, row = self.walk(x, state, reset)
        return SpikeTensor(spikes, self.theta.to(spikes.dtype)), row

    @torch.no_grad()
    def potential(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> Tensor:
        """u ``[B,T,D]`` before each spike, in thresholds."""
        return self.walk(x, state, reset)[0]

    def membrane(self, x: Tensor, state: Any = None) -> Tensor:
        """The same in units of the input: for pictures."""
        return self.potential(x, state) * self.theta.to(x.dtype)

    def drive(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, float]:
        """Potentials as they are counted, and the level of the spike."""
        return self.potential(x, state, reset).clamp(0.0, 1.0), 1.0


def compiled_steps(step: Any, x: Tensor, row: Row, reset: Tensor | None) -> tuple[Tensor, Row] | None:
    """Results ``[O,B,T,D]`` and the last state of ``step(x_t, row) -> (*outs, row)`` by `cell_scan`; None: the loop.

    The way that was taken, and why, is recorded as that of the operator ``cell_scan``.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        why = "torch's compiler or torch.func looks at the loop"
    elif not any(CELL_SCAN.name in table and x.device.type in devices for _, devices, table in kernels()):
        why = f"no compiled kernel for {x.device.type}"
    elif x.dtype not in FULL or any(s.dtype != x.dtype for s in row) or not x.numel():
        why = "not float32 or float64 throughout, or empty"
    else:
        try:
            tape, outs, new = record_step(step, x[:, 0], len(row))
        except NotTraceable as error:
            why = str(error)
        else:
            programs = programs_of(tuple(tape.entries), outs, new, tape.double)
            found, last = cell_scan(x, list(row), tape.operands, reset, programs)
            return found, tuple(last)
    record_path("cell_scan", "loop", why)
    return None


def channels_shifted(s: Tensor, by: int) -> Tensor:
    """Channel i of a row ``[B,D]`` is what channel i + `by` was; 0 beyond the ends."""
    if isinstance(s, TracedRow):
        return s.shifted(by)
    by = max(-s.shape[1], min(by, s.shape[1]))
    pad = (0, by) if by > 0 else (-by, 0)
    return nn.functional.pad(s[:, by:] if by > 0 else s[:, :by], pad)
