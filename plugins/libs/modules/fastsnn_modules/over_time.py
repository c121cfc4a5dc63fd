"""Is a step to be written as a loop of the exported graph, and that loop: one program for every number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Row = tuple[Tensor, ...]


def exporting(x: Tensor) -> bool:
    """Is ``x [B,T,…]`` looked at by `torch.export`, with T left open? Then a loop over T has to stay a loop."""
    return torch.compiler.is_exporting() and not isinstance(x.shape[1], int)


def over_time(step: Callable[[Row, Row], tuple[Row, Row]], carry: Row, xs: Sequence[Tensor]) -> tuple[Row, Row]:
    """``step(carry, row) -> (carry, out)`` for the rows of all `xs` ``[B,T,…]``: the last carry, and outs ``[B,T,…]``.

    A loop of the graph (`torch`'s scan, ONNX' Scan), for use while a model is exported (`exporting`).
    """
    from torch._higher_order_ops.scan import scan

    def combine(old: list[Tensor], row: list[Tensor]) -> Any:
        new, out = step(tuple(old), tuple(row))
        return [contiguous_copy(t) for t in new], [contiguous_copy(t) for t in out]  # no output may be an input

    new, outs = scan(combine, [contiguous_copy(t) for t in carry], [x.movedim(1, 0) for x in xs])
    return tuple(new), tuple(out.movedim(0, 1) for out in outs)


def contiguous_copy(t: Tensor) -> Tensor:
    """A contiguous copy: what goes in and what comes out of a scan have the same strides."""
    return t.clone(memory_format=torch.contiguous_format)
