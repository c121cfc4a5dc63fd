"""What conversion needs to know of a neuron: its component, what sets its threshold, its largest count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import nn

from fastsnn_conversion.context import ConversionError
from fastsnn_core import Neuron, create
from fastsnn_core.component import fields
from fastsnn_core.spec import Faults, converter

CODES = ("bitwise", "unary")
KNOBS = ("k", "threshold")
LIMITS = ("limit", "levels", "hi")


def component(neuron: Neuron | str | Mapping[str, Any]) -> Neuron:
    """A neuron component from itself, its name, or a table as in a spec."""
    if isinstance(neuron, Neuron):
        return neuron
    if isinstance(neuron, str):
        return create("neuron", neuron)
    try:
        return converter().structure(neuron, Neuron)
    except Faults as error:
        raise ConversionError(f"neuron {neuron!r}: {error}") from None


def levels(steps: int, code: str) -> int:
    """The largest count that `steps` slots carry: 2^S - 1 in binary digits, S where every slot weighs one."""
    if code not in CODES:
        raise ConversionError(f"no code {code!r}; codes: {', '.join(CODES)}")
    if steps < 1:
        raise ConversionError(f"at least one step is needed, got {steps}")
    return 2**steps - 1 if code == "bitwise" else steps


def evolved(part: Any, **values: Any) -> Any:
    """A component with some parameters changed."""
    return attrs.evolve(part, **values)


def field_of(neuron: Neuron, names: tuple[str, ...]) -> str | None:
    """The first of `names` that the neuron has as a parameter."""
    have = {f.name for f in fields(type(neuron))}
    return next((name for name in names if name in have), None)


def knob(neuron: Neuron) -> str | None:
    """The parameter that sets the threshold: ``k`` or ``threshold``; None for a neuron without one."""
    return field_of(neuron, KNOBS)


def limited(neuron: Neuron, largest: int) -> Neuron:
    """The neuron with counts up to `largest`; a neuron that cannot be limited so is refused."""
    name = field_of(neuron, LIMITS)
    if name is None:
        if largest_count(neuron.build(1)) <= largest:
            return neuron
        raise ConversionError(
            f"neuron {neuron.name!r} has no parameter for its largest count ({', '.join(LIMITS)}), so it cannot be "
            f"held to {largest}; leave `steps` out or take another neuron"
        )
    return evolved(neuron, **{name: largest})


def turned(neuron: Neuron, value: float) -> Neuron:
    """The neuron with its knob at `value`."""
    name = knob(neuron)
    return neuron if name is None else evolved(neuron, **{name: float(value)})


def largest_count(module: nn.Module | None) -> float:
    """The largest count a neuron module can give; infinity where it is not bounded."""
    return float(getattr(module, "hi", getattr(module, "bound", float("inf"))))


def smallest_count(module: nn.Module | None) -> float:
    """The smallest count: 0 for neurons that do not spike downwards."""
    return float(getattr(module, "lo", -largest_count(module)))
