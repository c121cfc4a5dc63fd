"""A model and its state as one ONNX graph."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.state import leaves, tree_map

STATE = "fastsnn.state"
STREAMS, LENGTH = 2, 3  # of the example that the graph is traced with


class WithState(nn.Module):
    """``(x, [past …]) -> (y, [present …])``: the tensors of the state one by one, in the order of `leaves`."""

    def __init__(self, model: nn.Module, like: Any) -> None:
        super().__init__()
        self.model, self.like = model, like

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One piece of a stream."""
        rows = iter(past)
        y, state = self.model(x, tree_map(lambda _: next(rows), self.like), return_state=True)
        return y, [t for _, t in leaves(state)]


def names(state: Any, path: str = "") -> Iterator[str]:
    """A name for every tensor of `leaves`: the fields of named tuples, numbers elsewhere."""
    if isinstance(state, Tensor):
        yield path
    elif isinstance(state, dict | tuple | list):
        fields = getattr(state, "_fields", None) or (state if isinstance(state, dict) else range(len(state)))
        items = state.values() if isinstance(state, dict) else state
        for name, item in zip(fields, items):
            yield from names(item, f"{path}.{name}" if path else str(name))


def example(model: Any, streams: int, length: int) -> Tensor:
    """An input ``[B,T,…]`` of a model: of one sample each, where its spec knows no time, `length` different ones."""
    generator = torch.Generator().manual_seed(11)
    if size := getattr(model.spec, "vocab_size", 0):
        return torch.randint(0, size, (streams, length), generator=generator)
    one = model.spec.example(1)
    if one.is_floating_point():
        return torch.rand(streams, length, *one.shape[1:], generator=generator, dtype=one.dtype)
    return one[:, None].expand(streams, length, *one.shape[1:]).clone()


def states(model: Any) -> tuple[Any, Any, list[list[int]]]:
    """The state of no tokens and that of `LENGTH`, and which dimensions of its tensors grow by the token."""
    x = example(model, STREAMS, LENGTH)
    try:
        _, empty = model(x[:, :0], return_state=True)
        _, one = model(x[:, :1], return_state=True)
        _, some = model(x, return_state=True)
    except TypeError as error:
        raise FastSNNError(f"onnx: the model gives no state ({error}); without it a stream would be cut") from None
    for name, t in zip(names(empty), (t for _, t in leaves(empty))):
        if t.numel() and bool((t != 0).any()):
            raise FastSNNError(f"onnx: {name} of the state does not begin with zeros, which the file could not say")
    pairs = zip((t for _, t in leaves(one)), (t for _, t in leaves(some)))
    grows = [[i for i in range(a.ndim) if a.shape[i] != b.shape[i]] for a, b in pairs]
    return empty, some, grows


@torch.no_grad()
def exported(model: Any) -> tuple[Any, Any, Any, list[list[int]]]:
    """``(program, empty state, state of some tokens, growing dimensions)``: `WithState` as torch.export writes it, for
    any number of streams and tokens.
    """
    empty, some, grows = states(model)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = [{0: dynamic} | dict.fromkeys(row, dynamic) for row in grows]
    program = torch.export.export(
        WithState(model, some).eval(),
        (example(model, STREAMS, LENGTH), [t.contiguous() for _, t in leaves(some)]),
        dynamic_shapes=({0: dynamic, 1: dynamic}, shapes),
        strict=False,
    )
    return program, empty, some, grows


@torch.no_grad()
def write_onnx(model: Any, path: Path, opset: int) -> None:
    """The graph of `model` at `path`."""
    tokens = not example(model, STREAMS, LENGTH).is_floating_point()
    try:
        with quiet():
            program, empty, some, grows = exported(model)
            labels = list(names(some))
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=["tokens" if tokens else "input", *(f"past.{name}" for name in labels)],
                output_names=["logits" if tokens else "output", *(f"present.{name}" for name in labels)],
            )
    except FastSNNError:
        raise
    except Exception as error:  # torch.export and its translation raise whatever they meet
        first = next((row for row in str(error).splitlines() if row.strip()), type(error).__name__)
        raise FastSNNError(f"onnx: torch.export cannot write this model: {first[:300]}") from error
    rows = [
        {"name": name, "shape": [0 if i in row else n for i, n in enumerate(t.shape)][1:], "dtype": str(t.dtype)[6:]}
        for name, t, row in zip(labels, (t for _, t in leaves(empty)), grows)
    ]
    made.model.metadata_props[STATE] = json.dumps(rows)
    made.save(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's notes about packages that this project does not use."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@torch.no_grad()
def compare_outputs(model: Any, path: Path, tolerance: float) -> float:
    """The largest difference of ONNX Runtime to the model, of the largest output: whole, and in pieces.

    Larger than `tolerance`: an error.
    """
    from fastsnn_exporter_onnx.runtime import OnnxNetwork

    network, x = OnnxNetwork(path), example(model, STREAMS + 1, 2 * LENGTH)
    wanted, last = model(x, return_state=True)
    whole, _ = network(x, return_state=True)
    state, rows = None, []
    for piece in (x[:, :1], x[:, 1:5], x[:, 5:]):
        y, state = network(piece, state, return_state=True)
        rows.append(y)
    size = float(wanted.abs().max()) or 1.0
    worst = max(float((found - wanted).abs().max()) / size for found in (whole, torch.cat(rows, 1)))
    for name, mine, theirs in zip(names(last), (t for _, t in leaves(last)), state or ()):
        if mine.shape != theirs.shape:
            raise FastSNNError(f"onnx: present.{name} is {list(theirs.shape)}, the model's {list(mine.shape)}")
    if not worst <= tolerance:
        raise FastSNNError(f"onnx: ONNX Runtime's outputs differ by {worst:.2g} of the largest; at most {tolerance:g}")
    return worst
