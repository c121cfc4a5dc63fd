"""The attentions that a name means, for `FastSNN.build` and for a conversion alike."""

from __future__ import annotations

from typing import Any

import pytest

from fastsnn_core import create
from fastsnn_core.errors import FastSNNError
from fastsnn_model_decoder.attention_list import ATTENTIONS, attention_list


def windows(found: Any) -> list[int]:
    """Every window in a list of attentions, nested ones too."""
    return [w for a in found for w in ([a.window] if hasattr(a, "window") else windows(getattr(a, "branches", ())))]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_name_means_its_components(name: str) -> None:
    assert [a.name for a in attention_list(name)] == list(ATTENTIONS[name])


@pytest.mark.parametrize("given", ["sliding_window", {"kind": "sliding_window"}])
def test_a_component_is_a_list_of_one(given: Any) -> None:
    assert attention_list(given) == (create("attention", "sliding_window"),)


def test_a_window_reaches_every_sliding_window() -> None:
    found = attention_list(["hybrid", "softmax", create("attention", "sliding_window", window=3)], window=7)
    assert [a.name for a in found] == ["hybrid", "softmax", "sliding_window"]
    assert windows(found) == [7, 7]


@pytest.mark.parametrize(
    ("given", "window", "message"),
    [
        ("hybrid_altt", None, "no attention 'hybrid_altt'; did you mean 'hybrid_alt'?"),
        ([], None, "attention is an empty list"),
        ({"kind": "gla", "nope": 1}, None, "gla has no parameter 'nope'"),
        ("swa", 0, "sliding_window.window: expected >= 1"),
        (3, None, "expected an attention table, got int 3"),
    ],
)
def test_what_is_no_attention_is_refused(given: Any, window: int | None, message: str) -> None:
    with pytest.raises(FastSNNError, match=message.replace("?", r"\?")):
        attention_list(given, window)
