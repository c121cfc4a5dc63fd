"""What a fused decoding step needs to know of a decoder in integer arithmetic: a `Plan` of plain numbers and tensors.

A model that can be decoded by one kernel describes itself as a plan (the decoder: `fastsnn_model_decoder.fast`); a
kernel set that has the operator ``decode_step`` makes a `Stepper` of it. The model itself is the naive twin: the same
logits, bit for bit, from the same states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import field, frozen
from torch import Tensor

from fastsnn_core.ops.dispatch import Operator


class Unsupported(ValueError):
    """Why a model, or its state, cannot take the fused step; the message says it."""


class NotYet(Unsupported):
    """The fused step is being compiled in the background; ask again later."""


@frozen(eq=False)
class Matrix:
    """INT8 weights ``[out, in]``, one scale per output ``[out]``, and a bias ``[out]`` or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None


@frozen(eq=False)
class Spikes:
    """How numbers become counts in front of a projection.

    `name` is the site's, for errors. `kind`: "levels" (V = max|x| / 127), "mean" (adaptive_threshold: level is k) or
    "max" (adaptive_max: level is clip, bound is 2^S - 1). Counts stay within ±bound (0: no bound), except the `burst`
    largest of a "max" row, which its maximum leaves out; |x/V| < dead_zone is silent; `centre` is taken off.
    """

    name: str = ""
    kind: str = "levels"
    level: float = 0.0
    bound: float = 0.0
    dead_zone: float = 0.0
    centre: Tensor | None = None
    burst: int = 0


@frozen(eq=False)
class Gate:
    """log g = max(logsigmoid(up(down x)) / tau, MIN_LOG_GATE)."""

    down: Matrix
    up: Matrix
    tau: float


@frozen(eq=False)
class Mixer:
    """One attention: `feature` names the map of a running-sum attention; without one it keeps keys and values.

    `window` 0 keeps all of them. With a `gate` the sums decay and the output is normalised by `norm`; without, it is
    divided by z + eps.
    """

    feature: str = ""
    window: int = 0
    rotary: bool = False
    gate: Gate | None = None
    norm: Tensor | None = None
    eps: float = 0.0


@frozen(eq=False)
class Layer:
    """One residual block."""

    norm: Tensor
    spikes: Spikes
    q: Matrix
    k: Matrix
    v: Matrix
    mixers: tuple[Mixer, ...]
    mixed: Spikes
    out: Matrix
    norm2: Tensor
    spikes2: Spikes
    up: Matrix
    gate: Matrix | None
    activation: str
    hidden: Spikes
    down: Matrix
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@frozen(eq=False)
class Plan:
    """A decoder: codes and scales of the embedding, layers, the last norm, and the head.

    `angles` gives cos and sin ``[P, K/2]`` of at least the first so many positions.
    """

    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    table: Tensor
    table_scale: Tensor | None
    layers: tuple[Layer, ...]
    norm: Tensor
    spikes: Spikes
    head: Matrix
    angles: Callable[[int], tuple[Tensor, Tensor]] = field(repr=False)


class Stream(Protocol):
    """One stream's states, held by the kernel."""

    position: int

    def step(self, token: int) -> Tensor:
        """Logits ``[vocab]`` after `token`; ValueError where counts are not finite, which ends the stream."""

    def states(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Per layer and mixer: (S, z) or the (keys, values) ``[n, G, K]`` that are held, oldest first."""


class Stepper(Protocol):
    """A plan made ready to run."""

    def start(self, position: int, states: list[list[tuple[Tensor, Tensor]]]) -> Stream:
        """A stream that goes on from these states (as `Stream.states` gives them)."""


def refuse(plan: Plan, wait: bool = True) -> Any:
    """No kernel: the model itself is the naive form."""
    raise Unsupported("no kernel set in use has a fused decoding step; pip install fastsnn-kernel-numba")


DECODE_STEP = Operator("decode_step", refuse, plain=True)


def stepper(plan: Plan, wait: bool = True) -> tuple[str, Any]:
    """``(kernel set, Stepper)`` of the best kernel set on the CPU that has a fused step.

    One that has to be compiled first is waited for, or, without `wait`, is `NotYet` while that happens.
    """
    kernel, make = DECODE_STEP.pick("cpu")
    return kernel, make(plan, wait)
