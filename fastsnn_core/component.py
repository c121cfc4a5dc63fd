"""Components: frozen attrs classes that *are* the specification of a part, and know how to build it.

A plugin writes::

    @frozen
    class Lif(Neuron):
        '''Leaky integrate and fire: equation, shapes, units, reference.'''

        name = "lif"
        tau: float = param(2.0, gt=1.0, unit="tokens", doc="membrane time constant")

        def build(self, features: int) -> torch.nn.Module: ...

`param` is the single source for validation, ``fastsnn show``, the documentation and the Hypothesis strategies.
A field whose type is a component kind is a *slot*; `slot` gives it a default by name, so that no plugin has to
import another one. This module imports no torch: it is what ``import fastsnn_core`` costs.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs

from fastsnn_core.parameters import META, Bounds, validate
from fastsnn_core.parameters import ParamError as ParamError
from fastsnn_core.parameters import bounds_of as bounds_of
from fastsnn_core.parameters import fields as fields
from fastsnn_core.parameters import hints as hints
from fastsnn_core.parameters import matches as matches
from fastsnn_core.parameters import param as param
from fastsnn_core.parameters import type_name as type_name


def slot(kind: type[Component], default: str | None = None, /, *, doc: str = "", **params: Any) -> Any:
    """A parameter that holds a component of `kind`; `default` names a plugin's component, looked up when needed."""
    if default is None and not params:
        return attrs.field(default=None, metadata={META: Bounds(doc=doc)}, validator=validate, kw_only=True)

    def make() -> Component:
        from fastsnn_core.plugins import create

        return create(kind, default or "", **params)

    return attrs.field(factory=make, metadata={META: Bounds(doc=doc)}, validator=validate, kw_only=True)


def slots(kind: type[Component], *defaults: str, doc: str = "") -> Any:
    """A parameter that holds a tuple of components of `kind`."""

    def make() -> tuple[Component, ...]:
        from fastsnn_core.plugins import create

        return tuple(create(kind, name) for name in defaults)

    return attrs.field(factory=make, metadata={META: Bounds(doc=doc)}, validator=validate, kw_only=True)


class Component:
    """Base of every kind. Subclasses set `name`; kinds set `kind`.

    Flags state the contract the conformance kit holds a component to. ``causal``: output at token t depends on tokens
    up to t. ``streaming``: any cut of the sequence, state carried over, gives the full pass. ``deterministic``: the
    same input gives the same bits. ``differentiable``: gradients reach the input and every parameter.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    causal: ClassVar[bool] = True
    streaming: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    def promises(self, flag: str) -> bool:
        """Does this component, with these parameters, keep one of `FLAGS`?"""
        return bool(getattr(self, flag))


FLAGS = ("causal", "streaming", "deterministic", "differentiable")


class Surrogate(Component):
    """A stand-in derivative of the spike count. ``derivative(u, first, last) -> Tensor`` like `u` (in thresholds)."""

    kind = "surrogate"

    def derivative(self, u: Any, first: float, last: float) -> Any:
        """d count / d u, with thresholds between `first` and `last`."""
        raise NotImplementedError("abstract")

    def code(self) -> tuple[str, float] | None:
        """``(closed form, parameter)`` where `fastsnn_core.ops.lif_scan` knows it, else None (one more pass)."""
        return None


class Neuron(Component):
    """``build(features) -> module``: ``(x [B,T,D], state, reset [B,T]) -> (SpikeTensor [B,T,D], state)``."""

    kind = "neuron"

    def build(self, features: int) -> Any:
        """The module, for `features` channels."""
        raise NotImplementedError("abstract")


class Coder(Component):
    """``encode(x, steps) -> SpikeTensor`` (dense train ``[S, …]``) and ``decode(spikes) -> Tensor``.

    ``lossless`` coders take counts and give them back; others values in [0, 1], or (``over_time``) signals ``[B,T,…]``.
    """

    kind = "coder"
    lossless: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    over_time: ClassVar[bool] = False

    def steps_for(self, largest: int) -> int:
        """Spike steps that the largest magnitude needs."""
        raise NotImplementedError("abstract")

    def encode(self, x: Any, steps: int | None = None) -> Any:
        """Counts (lossless) or values (otherwise) to a train."""
        raise NotImplementedError("abstract")

    def decode(self, spikes: Any) -> Any:
        """A train back to counts (lossless) or values."""
        raise NotImplementedError("abstract")

    def replay(self, u: Any, steps: int, first: float = 0.5) -> Any:
        """``(membranes, train) [S, …]`` of a neuron whose potential is `u` thresholds and whose first spike is at
        `first`: the code found by integrate-and-fire (`fastsnn_events.coder_helpers`), equal to `encode` of the
        count."""
        raise NotImplementedError(f"coder {self.name!r} has no spike-time form (no method replay)")


class Attention(Component):
    """``build(dims) -> mixer``: ``(heads: Heads, state, reset) -> (o [B,T,H,V·n], state)``.

    The model owns the projections; an attention only mixes tokens. ``rotary`` says whether it wants rotary positions,
    ``projections`` which of q, k and v it reads: the others are not computed, and are empty ``[B,T,0,K]``.
    """

    kind = "attention"
    rotary: ClassVar[bool] = False
    projections: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    @property
    def expansion(self) -> int:
        """Width of the output in heads' widths: 1, or the number of parallel branches."""
        return 1

    def build(self, dims: Any) -> Any:
        """The mixer for `dims` (a `fastsnn_core.heads.Dims`)."""
        raise NotImplementedError("abstract")

    def build_with_sites(self, dims: Any, site: Any) -> Any:
        """The mixer; what models call. An attention with projections of its own behind spikes overrides this one:
        ``site(name, features)`` makes a spike site, called ``(x, state, reset) -> (spikes, state)`` by the mixer."""
        return self.build(dims)


class Feedforward(Component):
    """``build(d_model, d_ff, site) -> module``: ``(x [B,T,D], state, reset) -> (y [B,T,D], state)``."""

    kind = "feedforward"

    def build(self, d_model: int, d_ff: int, site: Any) -> Any:
        """The module; ``site(name, features)`` makes the spike site in front of a projection."""
        raise NotImplementedError("abstract")


class Model(Component):
    """``build() -> module``: a whole network; a language model takes ``tokens [B,T]`` and gives logits ``[B,T,V]``."""

    kind = "model"

    def build(self) -> Any:
        """The network, freshly initialised from torch's global random state."""
        raise NotImplementedError("abstract")

    def example(self, batch: int) -> Any:
        """A small input of the right kind: token ids ``[B,T]``, or images; the same every time."""
        raise NotImplementedError("abstract")


class Rule(Component):
    """Converts one sort of module. ``matches(module) -> bool`` and ``convert(module, context) -> Replacement``."""

    kind = "rule"
    priority: ClassVar[int] = 0
    covers: ClassVar[tuple[str, ...]] = ()

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        raise NotImplementedError("abstract")

    def convert(self, module: Any, context: Any) -> Any:
        """What stands in its place."""
        raise NotImplementedError("abstract")

    def examples(self) -> Any:
        """``(module, *inputs)`` that the conformance kit converts: where `covers` names no module of torch.nn."""
        return ()


class Exporter(Component):
    """Writes a bundle as something else. ``unsupported(model) -> list[str]`` and ``export(model, path) -> Path``.

    ``writes`` says what lies at the path in the end ("bundle", "file" or "folder"), so that it can be checked at once.
    What was written is read back by `load`, and computes what `expected` does, to `tolerance` of the largest output.
    """

    kind = "exporter"
    writes: ClassVar[str] = ""
    tolerance: ClassVar[float] = 0.0

    def unsupported(self, model: Any) -> list[str]:
        """Reasons why `model` cannot be exported; empty when it can."""
        raise NotImplementedError("abstract")

    def export(self, model: Any, path: Any) -> Any:
        """Write `model` to `path`, beside and renamed."""
        raise NotImplementedError("abstract")

    def load(self, path: Any) -> Any:
        """What `export` wrote, as something to call like the model; a bundle where a plugin does not say otherwise."""
        from fastsnn_core.bundle import load

        return load(path)

    def expected(self, model: Any) -> Any:
        """What the written file computes, in memory: `model` itself, unless writing it changes its numbers."""
        return model


class Scope(Component):
    """One picture. ``measure(subject) -> dict`` (plain JSON data) and ``draw(data, figure)`` from that data alone."""

    kind = "scope"
    title: ClassVar[str] = ""

    def measure(self, subject: Any) -> dict[str, Any]:
        """Numbers for ``report.json``."""
        raise NotImplementedError("abstract")

    def draw(self, data: dict[str, Any], figure: Any) -> None:
        """Draw them on a matplotlib figure."""
        raise NotImplementedError("abstract")


class Kernel(Component):
    """Fast twins of `fastsnn_core.ops`. ``operators() -> {operator: callable}``; ``why_not() -> str | None``."""

    kind = "kernel"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    priority: ClassVar[int] = 0

    def why_not(self) -> str | None:
        """Why this kernel set cannot run here, or None."""
        return None

    def operators(self) -> dict[str, Any]:
        """Operator name to implementation, with the naive twin's signature."""
        raise NotImplementedError("abstract")


class Tracker(Component):
    """Follows training: ``start(run) -> session``, both as in `fastsnn_core.training_run`."""

    kind = "tracker"

    def start(self, run: Any) -> Any:
        """The session of one run; raising here (a missing package, a bad folder) ends the run before its first step."""
        raise NotImplementedError("abstract")


class Objective(Component):
    """What training on labelled samples makes small: ``loss(outputs, targets) -> [B]`` and ``read(outputs) -> [B,C]``.

    outputs ``[B,T,C]``: what the network gives at every step (T = 1 without time); spike counts with ``counts``, if it
    ends in spikes. targets: classes ``[B]`` where `task` is "classification", numbers ``[B,C]`` where it is
    "regression". `read` gives what the answer is taken from: the largest score, or the value itself.
    """

    kind = "objective"
    task: ClassVar[str] = "classification"
    counts: ClassVar[bool] = False

    def loss(self, outputs: Any, targets: Any) -> Any:
        """One number for every sample, with its gradient."""
        raise NotImplementedError("abstract")

    def read(self, outputs: Any) -> Any:
        """Scores of the classes, or values ``[B,C]``."""
        raise NotImplementedError("abstract")


ALL = (Surrogate, Neuron, Coder, Attention, Feedforward, Model, Rule, Exporter, Scope, Kernel, Tracker, Objective)
KINDS: dict[str, type[Component]] = {k.kind: k for k in ALL}


def kind_of(hint: Any) -> type[Component] | None:
    """The component kind an annotation asks for, through optionals and tuples; None for plain values."""
    if isinstance(hint, type) and issubclass(hint, Component):
        return KINDS.get(hint.kind)
    for arg in typing.get_args(hint):
        if found := kind_of(arg):
            return found
    return None


def parts(component: Any) -> Iterator[Component]:
    """The component and every component in its slots, depth first."""
    if isinstance(component, Component):
        yield component
    if attrs.has(type(component)):
        for field in attrs.fields(type(component)):
            value = getattr(component, field.name)
            for item in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
                if attrs.has(type(item)):
                    yield from parts(item)


def contract(component: Component) -> dict[str, bool]:
    """The flags of a composition: the AND over its parts."""
    found = tuple(parts(component))
    return {flag: all(part.promises(flag) for part in found) for flag in FLAGS}
