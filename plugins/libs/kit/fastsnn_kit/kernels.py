"""What a kernel set promises: each of its operators gives the naive twin's bits, on the operator's sample inputs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_core import ops
from fastsnn_core.component import Component
from fastsnn_core.testing.conformance import check

deterministic: Any = torch.utils.deterministic


def check_kernel(cls: Any) -> None:
    """Run every operator of a kernel set beside its naive twin: results, and what is changed in place, bit for bit.

    Memory is poisoned: what ``torch.empty`` hands out is full of NaN, and before every sample the kernel has seen one
    of the same shapes full of NaN, so that nothing it keeps for itself is zero by chance.
    """
    import pytest

    kernel = cls()
    if reason := kernel.why_not():
        pytest.skip(reason)
    known = ops.registered()  # first: what a kernel set offers may be read off this table
    table = kernel.operators()
    assert table, f"{kernel.name} offers nothing"
    unknown = sorted(set(table) - set(known))
    assert not unknown, f"{kernel.name} offers operators that no library has: {', '.join(unknown)}"
    for name, function in table.items():
        for device in kernel.devices:
            check_operator(known[name], function, device, f"{kernel.name}'s {name}")


def check_operator(operator: Any, function: Any, device: str, who: str) -> None:
    """One operator against its naive twin on all its samples."""
    seen = 0
    for i, sample in enumerate(operator.samples()):
        seen += 1
        with torch.no_grad(), poisoned():
            dirty(operator, function, moved_to(sample, device))
            ours, theirs = moved_to(sample, device), moved_to(sample, device)
            found = operator.run(function, *ours)
            if found is NotImplemented:
                continue  # left to the naive twin
            with ops.use("naive"):
                wanted = operator.run(operator.naive, *theirs)
        check_identical(found, wanted, f"{who}, sample {i}")
        check_identical(ours, theirs, f"{who}, sample {i}: inputs after the call")
    assert seen, f"{who}: the operator has no sample inputs; give Operator(…, samples=…)"


def check_identical(found: Any, wanted: Any, who: str) -> None:
    """Equal structure, types and bits; any NaN equals any other."""
    ours, theirs = dict(tensors_by_place(found)), dict(tensors_by_place(wanted))
    assert ours.keys() == theirs.keys(), f"{who}: gives {sorted(ours)}, wanted {sorted(theirs)}"
    for name, a in ours.items():
        b, what = theirs[name], f"{who}{name}"
        assert type(a) is type(b), f"{what}: {type(a).__name__} against {type(b).__name__}"
        if not isinstance(a, Tensor):
            assert a == b or (a != a and b != b), f"{what}: {a!r} against {b!r}"
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (
            f"{what}: {a.dtype} {tuple(a.shape)}, wanted {b.dtype} {tuple(b.shape)}"
        )
        nan = a.isnan() & b.isnan() if a.is_floating_point() else torch.zeros_like(a, dtype=torch.bool)
        off = ((a != b) & ~nan).sum()
        assert not off, f"{what}: {int(off)} of {a.numel()} numbers differ"


def tensors_by_place(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and number in a result, by its place."""
    if isinstance(value, Tensor | int | float | str | bool | type(None)):
        yield path, value
    elif isinstance(value, dict | tuple | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_by_place(item, f"{path}[{key!r}]")
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from tensors_by_place(getattr(value, field.name), f"{path}.{field.name}")


def moved_to(value: Any, device: str) -> Any:
    """A copy on a device."""
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.preserve_format).to(device)
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    if isinstance(value, tuple | list):
        return getattr(value, "_make", type(value))(moved_to(item, device) for item in value)
    if attrs.has(type(value)):
        parts = {f.alias: moved_to(getattr(value, f.name), device) for f in attrs.fields(type(value)) if f.init}
        return type(value)(**parts)
    return value


def dirty(operator: Any, function: Any, sample: Any) -> None:
    """Call a kernel with NaN in every float, so that whatever it keeps between calls is no use to the next one."""
    for _, tensor in tensors_by_place(sample):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.fill_(torch.nan)
    with contextlib.suppress(ValueError, OverflowError, ArithmeticError):  # refusing what is not finite is right
        operator.run(function, *sample)


class poisoned:
    """``torch.empty`` hands out NaN (or the largest integer) inside the block."""

    def __enter__(self) -> None:
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        self.fill = deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True

    def __exit__(self, *_: Any) -> None:
        torch.use_deterministic_algorithms(self.before[0], warn_only=self.before[1])
        deterministic.fill_uninitialized_memory = self.fill


@check("kernel")
def twins(name: str, cls: type[Component]) -> None:
    """Every operator gives the naive twin's bits on its sample inputs, on memory full of NaN."""
    check_kernel(cls)
