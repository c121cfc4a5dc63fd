"""Explicit state: nested tuples, dicts and tensors, the batch always first, that a stream carries from call to call.

``module(x, state) -> (y, state)``: nothing is hidden, so a stream can be cut, copied, batched with others, or saved in
the middle of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError, shape_text
from fastsnn_core.files import beside, reading_tensors
from fastsnn_core.targets import existing_file


class StateError(FastSNNError):
    """A state of other streams, of another module, or one that cannot be."""


def belongs(who: str, state: Any, batch: int) -> None:
    """Refuse a state whose tensors do not all hold `batch` streams (the first dimension)."""
    if state is None:
        return
    for path, t in leaves(state):
        held = t.shape[0] if t.ndim else 0
        if held != batch:
            where = f"the state's {path}" if path else "the state"
            raise StateError(
                f"{who}: {where} is of {held} streams ({shape_text(t)}), the input of {batch}. A state goes on with "
                "the streams it came from: state=None starts afresh, fastsnn_core.state.select and join change a batch"
            )


def tree_map(change: Callable[[Tensor], Any], state: Any) -> Any:
    """The same structure with `change` applied to every tensor."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {k: tree_map(change, v) for k, v in state.items()}
    if isinstance(state, tuple | list):
        items = [tree_map(change, s) for s in state]
        return type(state)(*items) if hasattr(state, "_fields") else type(state)(items)
    return state


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """``(dotted path, tensor)`` of every tensor, in order."""
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, dict | tuple | list):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        for key, item in pairs:
            yield from leaves(item, f"{path}.{key}" if path else str(key))


def detach(state: Any) -> Any:
    """Cut gradients: truncated backpropagation through time."""
    return tree_map(torch.Tensor.detach, state)


def nbytes(state: Any) -> int:
    """Memory of a state."""
    return sum(t.numel() * t.element_size() for _, t in leaves(state))


def select(state: Any, rows: Tensor | slice | list[int]) -> Any:
    """The streams `rows` of a batch."""
    return tree_map(lambda t: t[rows], state)


def join(states: list[Any]) -> Any:
    """One batch out of several (equal structure): the inverse of `select`."""
    parts = [dict(leaves(s)) for s in states]
    if any(p.keys() != parts[0].keys() for p in parts):
        raise FastSNNError("streams of different models cannot share a batch")
    rows = iter([torch.cat([p[name] for p in parts]) for name in parts[0]])
    return tree_map(lambda _: next(rows), states[0])


def save(state: Any, path: str | Path) -> None:
    """Write a state as safetensors, beside and renamed."""
    from safetensors.torch import save as to_bytes

    with beside(path) as scratch:
        scratch.write_bytes(to_bytes({name: t.detach().contiguous() for name, t in leaves(state)}))


def load(path: str | Path, like: Any) -> Any:
    """Read a state into the structure of `like` (any state of the same model)."""
    import safetensors.torch

    try:
        with reading_tensors():
            found = safetensors.torch.load_file(existing_file(path))
    except safetensors.SafetensorError as error:
        raise FastSNNError(f"{path} is no state: {error}") from None
    wanted = [name for name, _ in leaves(like)]
    if sorted(found) != sorted(wanted):
        raise FastSNNError(f"{path} is no state of this model: it has {len(found)} tensors, {len(wanted)} expected")
    rows = iter([found[name] for name in wanted])
    return tree_map(lambda _: next(rows), like)
