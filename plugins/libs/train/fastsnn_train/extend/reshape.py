"""Changes RoPE frequencies, windows and decays of a trained model for a longer context; in place and reversible.

Parameters stay the same objects, so the optimizer state remains valid. `spec` is updated, so bundles include the
change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from torch import nn

from fastsnn_core.errors import FastSNNError

Change = Callable[[Any], Any]


def layer_attentions(spec: Any) -> list[Any]:
    """The attention of every layer."""
    return [spec.attention[i % len(spec.attention)] for i in range(spec.n_layers)]


def with_branches(attention: Any) -> list[Any]:
    """An attention and, of one with branches, all of theirs."""
    return [attention, *(p for branch in getattr(attention, "branches", ()) for p in with_branches(branch))]


def changed(attention: Any, change: Change) -> Any:
    """An attention with `change` applied to it, or to each of its branches."""
    branches = getattr(attention, "branches", ())
    if branches:
        return attrs.evolve(attention, branches=tuple(changed(b, change) for b in branches))
    return change(attention)


def with_attentions(spec: Any, rows: list[Any]) -> Any:
    """The model's specification with these attentions, one per layer, written as short as they repeat."""
    period = next(p for p in range(1, len(rows) + 1) if all(rows[i] == rows[i % p] for i in range(len(rows))))
    return attrs.evolve(spec, attention=tuple(rows[:period]))


def adopt(model: nn.Module, spec: Any) -> None:
    """Make a built decoder what `spec` says; it may differ in rotary positions, windows and decays only."""
    now: Any = model
    if attrs.evolve(spec, attention=now.spec.attention, rope=now.spec.rope) != now.spec:
        raise FastSNNError("only attention and rope of a trained model can change")
    for layer, old, new in zip(now.layers, layer_attentions(now.spec), layer_attentions(spec)):
        if old == new:
            continue
        if not hasattr(layer.attention.mixer, "adopt"):
            raise FastSNNError(
                f"attention {type(new).__name__} cannot change after training: its mixer has no adopt(spec)"
            )
        layer.attention.mixer.adopt(new)
    if spec.rope != now.spec.rope:
        now.frequencies = spec.rope.frequencies(spec.dims.head_dim).to(now.frequencies.device)
        now.table = None
    now.spec = spec


def shaped(spec: Any, *, original: int, length: int, rope: str, window: int) -> Any:
    """`spec` for contexts of `length`, trained at `original` tokens: larger windows, RoPE scaling.

    Raises `FastSNNError` for scaling without effect: a fixed window contains only distances seen in training. ntk: base
    theta · factor^(K / (K - 2)) (Peng et al. 2023, arXiv 2309.00071, of which yarn is the other form).
    """
    if not window and rope == "none":
        return spec
    if not hasattr(spec, "rope") or not hasattr(spec, "attention"):
        raise FastSNNError(f"{type(spec).__name__} has no attention or rope to change; leave rope and window out")
    rows = layer_attentions(spec)
    windows = [p for a in rows for p in with_branches(a) if hasattr(p, "window")]
    if window:
        if not windows:
            raise FastSNNError("this model has no sliding window that could grow")
        if any(p.window > window for p in windows):
            raise FastSNNError(
                f"windows can only grow: they have {max(p.window for p in windows)} tokens, not {window}"
            )
        rows = [changed(a, lambda p: attrs.evolve(p, window=window) if hasattr(p, "window") else p) for a in rows]
        spec = with_attentions(spec, rows)
    if rope == "none":
        return spec
    seeing = [p.window if hasattr(p, "window") else length for a in rows for p in with_branches(a) if p.rotary]
    reach = max(seeing, default=0)  # the largest distance any rotary layer sees
    if reach <= original:
        raise FastSNNError(
            f"rope = {rope!r} would change nothing for the better: this model's rotary layers see at most {reach} "
            f"tokens, and were trained at {original}; only softmax layers and windows that grow need it"
        )
    factor = reach / original
    if rope == "yarn":
        more = {"scaling": "yarn", "factor": factor, "original": original, "low": 1.0, "high": 32.0}
        return attrs.evolve(spec, rope=attrs.evolve(spec.rope, **more))
    width = spec.dims.head_dim
    if width < 4:
        raise FastSNNError(f"rope = 'ntk' needs a head_dim of at least 4, got {width}")
    return attrs.evolve(spec, rope=attrs.evolve(spec.rope, theta=spec.rope.theta * factor ** (width / (width - 2))))
