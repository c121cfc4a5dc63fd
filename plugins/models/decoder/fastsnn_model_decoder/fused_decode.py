"""The fused decoding step: a decoder's plan made ready by a kernel, kept until the plan changes, and its streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_core.lowering import Unsupported
from fastsnn_model_decoder.fused_ready import first_state, ready_step
from fastsnn_model_decoder.layers import refuse_hooks


class FastStream:
    """A stream in the fused step: ``step(token) -> logits [vocab]``; `state` gives it back in the model's form."""

    def __init__(self, model: Any, made: Any, state: Any, room: int = 0) -> None:
        pairs = [block.attention.mixer.pack_state(s.attention.mixer) for block, s in zip(model.layers, state.layers)]
        self.made, self.stream = made, made.start(int(state.position), pairs, room)
        layers = tuple(s._replace(attention=s.attention._replace(mixer=None)) for s in state.layers)
        self.model, self.like = model, state._replace(layers=layers)  # the stream holds what the mixers have seen

    def step(self, token: int) -> Tensor:
        """Logits after one more token; counts that are not finite are a ValueError, and the stream's end."""
        return self.stream.step(token)

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Logits after one or more tokens, the bits of a `step` for each; errors as there."""
        (found,) = read_many([self], [tokens])
        if isinstance(found, FastSNNError):
            raise found
        return found

    @property
    def most_read(self) -> int:
        """Tokens up to which `read_many` reads a prompt faster than the layers themselves do."""
        return self.made.most_read

    @property
    def nbytes(self) -> int:
        """Memory of the state."""
        return self.stream.nbytes

    def state(self) -> Any:
        """The `DecoderState` that the model itself goes on with."""
        layers = []
        for block, old, pairs in zip(self.model.layers, self.like.layers, self.stream.states()):
            mixer = block.attention.mixer.unpack_state(pairs)
            layers.append(old._replace(attention=old.attention._replace(mixer=mixer)))
        return self.like._replace(position=torch.tensor([self.stream.position]), layers=tuple(layers))


def step_many(streams: Sequence[FastStream], tokens: Sequence[int]) -> list[Tensor | FastSNNError]:
    """Logits ``[vocab]`` of one more token of each stream, the bits of `FastStream.step`; or the error it raises.

    Streams of one kernel's plan share a pass over the weights, as many as it takes at once; others take turns.
    """
    if len(streams) != len(tokens):
        raise ArgumentError(f"step_many: {len(streams)} streams, but {len(tokens)} tokens")
    return read_many(streams, [(token,) for token in tokens])


def read_many(streams: Sequence[FastStream], pieces: Sequence[Sequence[int]]) -> list[Tensor | FastSNNError]:
    """`step_many` of one or more tokens of each stream: logits after the last one of each."""
    if len(streams) != len(pieces):
        raise ArgumentError(f"read_many: {len(streams)} streams, but tokens of {len(pieces)}")
    for stream in streams:
        if not isinstance(stream, FastStream):
            raise ArgumentError(f"step_many and read_many take streams that fast() made, got {type(stream).__name__}")
    out: list[Any] = [None] * len(streams)
    by_maker: dict[int, list[int]] = {}
    for i, stream in enumerate(streams):
        by_maker.setdefault(id(stream.made), []).append(i)
    for some in by_maker.values():
        made = streams[some[0]].made
        for i, logits in zip(some, made.read_many([streams[i].stream for i in some], [pieces[i] for i in some])):
            out[i] = logits
    return out


def start_streams(
    model: Any, states: Sequence[Any], rooms: Sequence[int], wait: bool = True, within: float = 0.0
) -> list[FastStream | None]:
    """A stream that goes on from each of `states` (None: from the start), with caches for so many tokens; None for each
    where that cannot be.

    The model's `fast_step` says which kernel set it is, or why there is none. The plan is made anew each time, once for
    all (20 ms for 30 layers), and the kernel's own form of it where its numbers, its tensors or the number of threads
    have changed; not within `within` seconds of the last time.
    """
    try:
        refuse_hooks(model)
        if any(state is not None and len(state.position) != 1 for state in states):
            raise Unsupported("a fused stream begins from the state of one stream")
        kernel, made = ready_step(model, wait, within)
        if any(state is None for state in states):
            none = first_state(model)
            states = [none if state is None else state for state in states]
        found: list[FastStream | None] = [FastStream(model, made, state, room) for state, room in zip(states, rooms)]
    except Unsupported as reason:
        model.fast_step = {"kernel": None, "why": str(reason)}
        return [None] * len(states)
    model.fast_step = {"kernel": kernel, "why": "every part of the model has a fused form"}
    return found
