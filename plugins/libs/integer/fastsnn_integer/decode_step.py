"""What a kernel makes of a `fastsnn_core.lowering.DecoderPlan`: the operator ``decode_step``, as protocols.

``decode_step(plan, wait)`` gives a `DecodeStepper`, which starts streams (`DecodeStream`); it is stale when the
`fingerprint` of the plan changes. The naive twin is `fastsnn_integer.reference.ReferenceStepper`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import attrs
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import Unsupported

SMALL = 1 << 20  # float32 numbers up to which constants are compared by content, not only by their version
States = list[list[tuple[Tensor, Tensor]]]


class NotYet(Unsupported):
    """The fused step is being compiled in the background; ask again later."""


class DecodeStream(Protocol):
    """One stream's states, held by a kernel."""

    position: int

    @property
    def nbytes(self) -> int:
        """Memory of the states."""

    def step(self, token: int) -> Tensor:
        """Logits ``[vocab]`` after `token`; ValueError where counts are not finite, which ends the stream."""

    def states(self) -> States:
        """Per block and form: (S, z) or the (keys, values) ``[n,G,K]`` that are held, oldest first."""


class DecodeStepper(Protocol):
    """A plan made ready to run: what the operator ``decode_step`` returns for ``(plan, wait)``.

    `most_read`: tokens up to which `read_many` reads a prompt faster than the layers themselves do.
    """

    most_read: int

    def start(self, position: int, states: States, room: int = 0) -> DecodeStream:
        """A stream that goes on from these states (as `DecodeStream.states` gives them).

        `room`: tokens that it will hold at most, so that caches need no growing; 0 where nobody knows.
        """

    def step_many(self, streams: Sequence[Any], tokens: Sequence[int]) -> list[Tensor | FastSNNError]:
        """One token of each of these streams, with the bits of `DecodeStream.step`: logits, or the error of that step.

        Streams stand where they stand; who steps with whom changes nothing but the time it takes. A stream given twice,
        or one of another stepper, is refused before any steps.
        """

    def read_many(self, streams: Sequence[Any], pieces: Sequence[Sequence[int]]) -> list[Tensor | FastSNNError]:
        """The next tokens of each of these streams, one or more: the logits after its last one, or the error.

        The bits are those of a `DecodeStream.step` for each token. Tokens that cannot be taken are refused before any
        of their stream's is read.
        """


def fingerprint(form: Any) -> Any:
    """Equal for equal forms: numbers and names by value, tensors by place, version and (small floats) content.

    What a kernel has made of a form is stale when this changes. ``.data`` and inference mode write without a new
    version, so constants are looked at themselves.
    """
    if isinstance(form, Tensor):
        version = 0 if form.is_inference() else form._version
        known = (form.data_ptr(), tuple(form.shape), form.stride(), form.dtype, str(form.device), version)
        if form.is_floating_point() and form.numel() <= SMALL and form.device.type == "cpu":
            return (*known, zlib.crc32(form.detach().contiguous().numpy().tobytes()))
        return known
    if isinstance(form, tuple | list):
        return tuple(fingerprint(item) for item in form)
    if attrs.has(type(form)):
        parts = [f.name for f in attrs.fields(type(form)) if not f.metadata.get("definition")]
        return (type(form).__name__, *(fingerprint(getattr(form, name)) for name in parts))
    return form
