"""Checks of surrogates, neurons, attentions and feed-forward layers on drawn components, filed under their kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from fastsnn_core.component import Component, contract
from fastsnn_core.heads import Dims
from fastsnn_core.site import SpikeSite
from fastsnn_core.testing.conformance import check, each, libraries
from fastsnn_kit import checks
from fastsnn_kit.draws import cuts, signals


@check("surrogate")
def derivative(name: str, cls: type[Component]) -> None:
    """`checks.check_surrogate` on membranes far and near."""
    each(name, cls, lambda component, data: checks.check_surrogate(component, torch.linspace(-9, 9, 61).double()))


@check("neuron")
def counts(name: str, cls: type[Component]) -> None:
    """Whole counts, value = counts · scale, every view the same."""
    each(name, cls, lambda n, data: checks.check_neuron_counts(n, data.draw(signals(2, 3, 2))))


@check("neuron", "attention", "feedforward")
def shapes(name: str, cls: type[Component]) -> None:
    """Shapes as promised, finite, for B = 0 and T = 1 too."""
    drawn_stream(name, cls, None, lambda run, x, who, data: checks.check_shapes(run, x, who, promised(who, run, x)))


@check("neuron", "attention", "feedforward")
def causal(name: str, cls: type[Component]) -> None:
    """The future does not change the past."""
    drawn_stream(
        name, cls, "causal", lambda run, x, who, data: checks.check_causal(run, x, data.draw(st.integers(1, 4)), who)
    )


@check("neuron", "attention", "feedforward")
def deterministic(name: str, cls: type[Component]) -> None:
    """Same input, same bits."""
    drawn_stream(name, cls, "deterministic", lambda run, x, who, data: checks.check_deterministic(run, x, who))


@check("neuron", "attention", "feedforward")
def streaming(name: str, cls: type[Component]) -> None:
    """Any cut with carried state gives the full pass."""
    drawn_stream(
        name,
        cls,
        "streaming",
        lambda run, x, who, data: checks.check_streaming(run, x, data.draw(cuts(5)), who),
    )


@check("neuron", "attention", "feedforward")
def reset(name: str, cls: type[Component]) -> None:
    """A reset starts a document of its own."""
    drawn_stream(
        name, cls, "streaming", lambda run, x, who, data: checks.check_reset(run, x, data.draw(st.integers(0, 4)), who)
    )


@check("neuron", "attention", "feedforward")
def batch(name: str, cls: type[Component]) -> None:
    """Streams of a batch do not see each other."""
    drawn_stream(name, cls, "deterministic", lambda run, x, who, data: checks.check_batch(run, x, who))


@check("neuron", "attention", "feedforward")
def gradients(name: str, cls: type[Component]) -> None:
    """Finite, and alive at the input and every parameter."""

    def body(component: Any, data: st.DataObject) -> None:
        if contract(component)["differentiable"]:
            x = (
                10 * checks.sweep(2, 7, 48) if cls.kind == "neuron" else checks.sweep(2, 7, 8)
            )  # beyond smallest thresholds
            module, run = stream_of(component, x.shape[-1])
            calibrate: Any = getattr(module, "calibrate_", None)
            if calibrate is not None:
                calibrate(x)
            checks.check_gradients(module, run, x, checks.label(component))

    each(name, cls, body)


@check("neuron", "attention", "feedforward", "rule")
def promises(name: str, cls: type[Component]) -> None:
    """What installed libraries hold this kind to: `lower()` forgets nothing; a rule's replacement keeps the value."""
    for further in libraries(cls.kind):
        each(name, cls, further, examples=8)


# -- plumbing -----------------------------------------------------------------------------------------------------


def stream_of(component: Any, features: int) -> tuple[torch.nn.Module, checks.Run]:
    """A stream function for a neuron, an attention or a feed-forward layer over `features` channels."""
    if component.kind == "neuron":
        return checks.neuron_run(component, features)
    if component.kind == "attention":
        return checks.attention_run(component, Dims(features, 4, 2, 4))
    module = component.build(features, 12, lambda name, width: SpikeSite(None)).double()
    return module, lambda x, state, reset: module(x, state, reset)


def promised(who: str, run: checks.Run, x: torch.Tensor) -> tuple[int, ...]:
    """Output shape of a stream: ``[B,T,D]``; attentions give ``[B,T,H,n·K]`` and are held to B and T only."""
    y = checks.dense_value(run(x, None, None)[0])
    return (*x.shape[:2], *y.shape[2:]) if who.startswith("attention") else tuple(x.shape)


def drawn_stream(name: str, cls: type[Component], flag: str | None, body: Callable[..., None]) -> None:
    """Run `body(run, x, who, data)` on drawn components that promise `flag`."""

    def go(component: Any, data: st.DataObject) -> None:
        if flag is None or contract(component)[flag]:
            x = data.draw(signals(2, 5, 3)) if cls.kind == "neuron" else checks.sweep(2, 5, 8)
            body(stream_of(component, x.shape[-1])[1], x, checks.label(component), data)

    each(name, cls, go)
