"""What coders promise: checks of the conformance kit (the entry point of ``fastsnn1.kit``)."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastsnn_core.component import Coder, Component
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.testing.conformance import check, each
from fastsnn_events.linear import count_linear, event_linear
from fastsnn_kit.checks import label
from fastsnn_kit.draws import spike_arrays


def check_count_equals_event(spikes: SpikeTensor, coder: Coder, weight: Tensor, steps: int | None = None) -> None:
    """count ≡ train ≡ events, bit for bit, through an integer linear layer."""
    who = label(coder)
    train = coder.encode(spikes, steps)
    assert torch.equal(coder.decode(train).to(torch.int64), spikes.counts.to(torch.int64)), f"{who} is not lossless"
    wanted = count_linear(spikes, weight)
    for view in (train, train.event(), spikes.event()):
        assert torch.equal(event_linear(view, weight), wanted), f"{who}: events and counts give different integers"
    slots = sum(int(w) * count_linear(SpikeTensor(s), weight) for w, s in zip(train.weights, train.train))
    assert torch.equal(torch.as_tensor(slots), wanted), (
        f"{who}: the train replayed step by step differs from the counts"
    )
    signs = set(train.train.unique().tolist()) if train.train.numel() else set()
    assert signs <= ({-1, 0, 1} if coder.signed else {0, 1}), f"{who}: train values {signs}"


def check_refuses(coder: Coder, counts: Tensor, steps: int) -> None:
    """A count that does not fit is refused, naming the count and the steps; it is never truncated."""
    try:
        train = coder.encode(counts, steps)
    except ValueError as error:
        assert str(steps) in str(error), f"{label(coder)}: the error does not name the steps: {error}"
        return
    got = coder.decode(train)
    assert torch.equal(got.to(torch.int64), counts), f"{label(coder)} truncated a count in {steps} steps"


def check_value_coder(coder: Any, x: Tensor) -> None:
    """Decoding gives the values back to the coder's own tolerance; the train is spikes."""
    train = coder.encode(x)
    error = float((coder.decode(train).double() - x.double()).abs().max()) if x.numel() else 0.0
    bound = coder.tolerance(len(train.train))
    assert error <= bound * (1 + 1e-9) + 1e-12, f"{label(coder)}: decoding is off by {error:g}, promised {bound:g}"
    assert set(train.train.unique().tolist()) <= {-1, 0, 1}, f"{label(coder)}: the train is no spike train"


@check("coder")
def faithful(name: str, cls: type[Component]) -> None:
    """Lossless coders: count ≡ train ≡ events in integers, refusal of what does not fit. Others: their tolerance."""

    def body(coder: Any, data: st.DataObject) -> None:
        if not coder.lossless:
            shape = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 4)]))
            row = data.draw(st.lists(st.floats(0, 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
            check_value_coder(coder, torch.tensor(row, dtype=torch.float64).reshape(shape))
            return
        drawn = data.draw(spike_arrays(coder.signed, 300 if cls.name in ("bitwise", "twos_complement") else 20))
        largest = int(drawn.abs().max()) if drawn.numel() else 0
        weight = (torch.arange(5 * drawn.shape[-1]).reshape(5, drawn.shape[-1]) * 37 % 255 - 127).to(torch.int8)
        check_count_equals_event(SpikeTensor(drawn), coder, weight)
        check_count_equals_event(SpikeTensor(drawn), coder, weight, coder.steps_for(largest) + 1)
        check_refuses(coder, drawn, data.draw(st.integers(1, 4)))

    each(name, cls, body)
