"""The converted network against the model that was given, as its user calls it, on inputs that nothing was fitted to.

    error = ‖y - y₀‖ / ‖y₀ - mean y₀‖        y₀: the model's own outputs (hooks, subclasses and half precision included)

with its standard error over the samples; the same of the network as a bundle would give it back: built anew from its
spec, with its weights loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_console.progress import Progress
from fastsnn_conversion.context import ConversionError
from fastsnn_convert.modules.inputs import Call
from fastsnn_convert.output_distance import flat_outputs, output_tensors, reference
from fastsnn_core import build

HELD_OUT, LEAST, MOST = 8, 32, 512  # every eighth sample, of this many at least; no more than so many are compared


@attrs.frozen
class CalibrationData:
    """Calibration data: what is fitted to, and what is compared on (`held` says that they are apart)."""

    fit: tuple[Tensor, ...]
    compare: tuple[Tensor, ...]
    held: bool

    @classmethod
    def split(cls, data: tuple[Tensor, ...], validation: tuple[Tensor, ...]) -> CalibrationData:
        """Every eighth sample is held out where no validation data is given and there are enough of them."""
        if validation:
            return cls(data, validation, True)
        if not data or len(data[0]) < LEAST:
            return cls(data, data, False)
        out = torch.arange(len(data[0])) % HELD_OUT == HELD_OUT - 1
        return cls(tuple(x[~out] for x in data), tuple(x[out] for x in data), True)

    def says(self) -> str:
        """What a figure was measured on."""
        count = min(MOST, len(self.compare[0]))
        return f"{count} samples " + ("held out of calibration" if self.held else "that thresholds were chosen on")


@torch.no_grad()
def compare(model: nn.Module, call: Call, snn: nn.Module, data: CalibrationData) -> dict[str, Any]:
    """Figures of the whole for a report. `data` is as the user gave it."""
    inputs = [x[:MOST] for x in data.compare]
    batches = list(zip(*(x.split(64) for x in inputs)))
    wanted, found, classes = [], [], True
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with Progress("comparing with the original", total=len(batches), unit="batches") as progress:
            for pieces in batches:
                size = len(pieces[0])
                theirs = call(model, [x.clone() for x in pieces])
                classes = classes and isinstance(theirs, Tensor) and theirs.ndim == 2 and theirs.shape[-1] > 1
                wanted.append(flat_outputs(theirs, size))
                found.append(flat_outputs(snn(*(x.clone() for x in pieces)), size))
                progress.step()
    finally:
        for module, mode in modes.items():
            module.training = mode
    y0, y = torch.cat(wanted), torch.cat(found)
    check_outputs(y0, y)
    error, stderr = relative_error(y, y0)
    figures: dict[str, Any] = {
        "output_error": error, "output_error_stderr": stderr, "relative_to": reference(y0), "measured_on": data.says(),
    }  # fmt: skip
    if classes:
        same = (y.argmax(-1) == y0.argmax(-1)).double()
        figures["agreement"] = float(same.mean())
        figures["agreement_stderr"] = float((same.var(correction=0) / len(same)).sqrt())
    return figures


def check_outputs(y0: Tensor, y: Tensor) -> None:
    """Outputs are numbers."""
    for who, z in (("the model", y0), ("the converted network", y)):
        if not bool(z.isfinite().all()):
            bad = (~z.isfinite()).any(-1).nonzero().flatten()
            raise ConversionError(
                f"{who} gives NaN or infinite outputs for {len(bad)} of {len(z)} samples (the first is {int(bad[0])})"
            )


def relative_error(y: Tensor, y0: Tensor) -> tuple[float, float]:
    """The error relative to `reference`, and its standard error over the samples (the delta method of a ratio)."""
    y, y0 = y.double(), y0.double()
    off = (y - y0).square().sum(-1)
    size = (y0 - y0.mean(0) if reference(y0) == "spread" else y0).square().sum(-1)
    ratio = float(off.mean() / size.mean().clamp_min(1e-24))
    if len(y) < 2 or not ratio:
        return math.sqrt(ratio), 0.0
    spread = (off - ratio * size).std() / math.sqrt(len(y)) / size.mean().clamp_min(1e-24)
    return math.sqrt(ratio), float(spread) / (2 * math.sqrt(ratio))


@torch.no_grad()
def rebuilt(snn: nn.Module) -> nn.Module:
    """The network as a bundle gives it back: from its spec, with its weights."""
    with torch.random.fork_rng(devices=[]):
        new = build(snn.spec)  # type: ignore[arg-type]
    new.load_state_dict(snn.state_dict(), assign=True)
    place = next(iter((*snn.parameters(), *snn.buffers())), None)
    return new.eval() if place is None else new.to(place.device).eval()


@torch.no_grad()
def check_rebuilt(snn: nn.Module, example: Sequence[Tensor]) -> None:
    """A network must compute the same after saving and loading: compared before anybody relies on it."""
    new = rebuilt(snn)
    mine, other = (list(output_tensors(m(*(x.clone() for x in example)))) for m in (snn.eval(), new))
    if len(mine) != len(other) or any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(mine, other)):
        raise ConversionError(
            "this network would compute something else after saving and loading, so it is not written; please report "
            "it with the model's forward"
        )
