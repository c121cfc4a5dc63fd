"""Lists of attentions by name: what a preset, a component's name, a table or a list of these means for a decoder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import attrs

from fastsnn_core import Attention
from fastsnn_core.errors import FastSNNError
from fastsnn_core.plugins import registry
from fastsnn_core.spec import Faults, SpecError, converter

ATTENTIONS: dict[str, tuple[str, ...]] = {
    "hybrid_alt": ("gla", "sliding_window"),
    "linear_alt": ("linear", "sliding_window"),
    "swa": ("sliding_window",),
}
"""Names that are no single component: ``hybrid_alt`` alternates gated linear and sliding-window layers."""


def attention_list(attention: Any, window: int | None = None) -> tuple[Attention, ...]:
    """The attentions that are cycled over the layers; sliding windows, nested ones too, get `window` tokens if given.

    `FastSNNError`: no attention of that name, an empty list. `SpecError`: a table or a window that does not fit.
    """
    if isinstance(attention, str):
        known = [*ATTENTIONS, *registry().names("attention")]
        if attention not in known and attention.rpartition("/")[2] not in known:
            close = difflib.get_close_matches(attention, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise FastSNNError(f"no attention {attention!r}; {hint}there are {', '.join(known)}")
        attention = ATTENTIONS.get(attention, (attention,))
    items = list(attention) if isinstance(attention, Sequence) else [attention]
    if not items:
        raise FastSNNError("attention is an empty list; name at least one")
    try:
        found = [converter().structure(item, Attention) for item in items]
        return tuple(found if window is None else (with_window(item, window) for item in found))
    except Faults as error:
        raise SpecError(error.problems, source="") from None


def with_window(attention: Any, window: int) -> Any:
    """The same attention; every `window` of it and of the attentions inside it is `window` tokens."""
    changes: dict[str, Any] = {}
    for field in attrs.fields(type(attention)):
        value = getattr(attention, field.name)
        if field.name == "window":
            changes["window"] = window
        elif isinstance(value, tuple) and any(isinstance(part, Attention) for part in value):
            changes[field.name] = tuple(with_window(part, window) for part in value)
    return attrs.evolve(attention, **changes)
