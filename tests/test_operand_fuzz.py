"""Operators and kernels under random wrong operands: never a signal; a clear error, or the naive twin's numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from fastsnn_core import ops
from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import SiteForm, SpikeRule
from fastsnn_integer.plan_check import check_site
from fastsnn_modules.operands import OperandError


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_operands_never_end_the_process(seed: int) -> None:
    script = Path(__file__).with_name("operand_fuzz.py")
    done = subprocess.run(
        [sys.executable, script, str(seed), os.environ.get("FASTSNN_ROUNDS", "8")],
        capture_output=True, text=True, env=os.environ | {"MALLOC_PERTURB_": "165"}, timeout=550, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-12:]
    assert done.returncode == 0, f"ended with {done.returncode}: " + "\n".join(last)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the tensors of a sample are: places in tuples and names of fields."""
    if isinstance(value, Tensor):
        yield at
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from places(part, (*at, i))
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from places(getattr(value, field.name), (*at, field.name))


def replaced(value: Any, at: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> Any:
    """The sample with one of its tensors changed."""
    if not at:
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(replaced(x, at[1:], change) if i == at[0] else x for i, x in enumerate(value))
    return attrs.evolve(value, **{at[0].lstrip("_"): replaced(getattr(value, at[0]), at[1:], change)})


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "of another device": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse() if t.ndim else t.to(torch.complex64),
}
CHECKED = sorted(set(ops.registered()) - {"decode_step"})  # whose plan is made by modules; `check_plan` looks at it


@pytest.mark.parametrize("name", CHECKED)
def test_every_tensor_of_every_operand_is_looked_at(name: str) -> None:
    operator = ops.registered()[name]
    assert operator.check is not None
    for sample in list(operator.samples())[:3]:
        operator.check(*sample)
        at = list(places(sample))
        for place in at:
            for what, change in STRANGE.items():
                if what == "of another device" and len(at) == 1:
                    continue
                try:  # a plan looks at what is in it when it is made
                    operator.check(*replaced(sample, place, change))
                except FastSNNError:
                    continue
                pytest.fail(f"{place} {what} is let in")


def test_a_result_that_no_memory_holds_is_refused_by_its_size() -> None:
    index, weights = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    matrix = torch.ones(70, 3, dtype=torch.int8)
    with pytest.raises(OperandError, match=r"event_linear: sums of 1000000000 × 70 numbers are 560 GB; this machine"):
        ops.registered()["event_linear"]("cpu", index, weights, 10**9, matrix)


def test_a_burst_goes_with_the_maximum_only() -> None:
    """Seeds 12 and 15 of the fuzz: with a mean the naive twin let channels burst and the kernel did not."""
    for statistic in ("mean_abs", "rms"):
        with pytest.raises(OperandError, match=f"burst = 1 goes with statistic max_abs, not {statistic}"):
            check_site("site", SiteForm(SpikeRule(statistic, burst=1)), 4)
    check_site("site", SiteForm(SpikeRule("max_abs", burst=1)), 4)
