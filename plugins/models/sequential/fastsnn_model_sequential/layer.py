"""One layer of a network as plain data: an operation by name, and only the parameters that it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attrs import frozen

from fastsnn_core import Coder, Model, Neuron, param, slot
from fastsnn_core.errors import FastSNNError
from fastsnn_model_sequential.table import NEEDED, OPS, Shape


@frozen
class Layer:
    """`op` and what it takes; whatever is left out has the operation's own default (that of `torch.nn`).

    `features` (channels or width that come in) is worked out from the layer before, where there is one. Shapes are
    those of one sample: ``[D]``, ``[C, L]`` or ``[C, H, W]``.
    """

    op: str = param(choices=tuple(OPS), doc="what the layer does")
    size: int | None = param(None, ge=1, doc="channels or width that go out; rows of an embedding's vectors")
    features: int | None = param(None, ge=1, doc="channels or width that come in; tokens of an embedding")
    kernel: tuple[int, ...] | None = param(None, ge=1, doc="window; one number stands for every dimension")
    stride: tuple[int, ...] | None = param(None, ge=1, doc="step of the window")
    padding: tuple[int, ...] | None = param(None, ge=0, doc="zeros on both sides")
    dilation: tuple[int, ...] | None = param(None, ge=1, doc="spacing inside the window")
    output_padding: tuple[int, ...] | None = param(None, ge=0, doc="of a transposed convolution")
    groups: int | None = param(None, ge=1, doc="of a convolution or a group norm")
    padding_mode: str | None = param(
        None, choices=(None, "zeros", "reflect", "replicate", "circular"), doc="what a convolution pads with"
    )
    bias: bool | None = param(None, doc="add a bias")
    bits: int | None = param(None, choices=(None, 8), doc="of a weight: 8 for INT8 on counts; left out, floats")
    affine: bool | None = param(None, doc="learnt scale (and shift) of a norm")
    eps: float | None = param(None, gt=0.0, doc="of a norm")
    momentum: float | None = param(None, ge=0.0, le=1.0, doc="of a batch norm's running statistics")
    tracked: bool | None = param(None, doc="a batch norm keeps running statistics, and uses them in evaluation mode")
    spread: float | None = param(None, ge=0.0, doc="a batch norm's β is drawn from ±spread at first, else 0")
    slope: float | None = param(None, doc="below zero: leaky_relu's slope, elu's alpha")
    p: float | None = param(None, ge=0.0, lt=1.0, doc="dropout probability")
    fixed: bool | None = param(None, doc="dropout: the same channels at every step of a sequence")
    alpha: float | None = param(None, gt=0.0, doc="of td_batch_norm: 1/√n where n branches are added")
    threshold: float | None = param(None, gt=0.0, doc="of td_batch_norm: θ of the neurons behind it")
    scale: float | None = param(None, gt=0.0, doc="of the products of a spiking attention, in thresholds")
    norms: bool | None = param(None, doc="a spiking attention has batch norms; false: biases in their place")
    how: str | None = param(None, choices=(None, "add", "and", "iand"), doc="how a residual meets its shortcut")
    shortcut: Model | None = slot(Model, doc="of a residual: a network in place of the identity")
    shape: tuple[int, ...] | None = param(None, ge=1, doc="what a layer norm or unflatten works on")
    heads: int | None = param(None, ge=1, doc="of the attention that a mask belongs to")
    keys: bool | None = param(None, doc="the mask hides keys: [N, S] instead of [L, S]")
    dims: int | None = param(None, ge=1, doc="trailing dimensions that share one threshold (spikes) or are pooled")
    steps: int | None = param(None, ge=1, unit="steps", doc="T, for which a sample without time is shown")
    tau: float | None = param(None, gt=1.0, unit="tokens", doc="time constant of a leaky integrator")
    learn: bool | None = param(None, doc="the time constant is learnt")
    coder: Coder | None = slot(Coder, doc="what writes values in [0, 1] as a train of T steps")
    neuron: Neuron | None = slot(Neuron, doc="what makes the spikes")
    part: Model | None = slot(Model, doc="a network of its own, as a layer")

    def __attrs_post_init__(self) -> None:
        takes = OPS[self.op].takes
        for name in FIELDS:
            if getattr(self, name) is not None and name not in takes:
                raise FastSNNError(f"{self.op} takes no {name!r}; it takes {', '.join(takes) or 'nothing'}")
        if missing := [name for name, default in takes.items() if default is NEEDED and getattr(self, name) is None]:
            raise FastSNNError(f"{self.op} needs {', '.join(missing)}")

    def values(self, shape: Shape | None = None) -> Any:
        """Every parameter the operation takes, defaults filled in, sizes spread over the dimensions of `shape`."""
        op = OPS[self.op]
        found = {n: d if getattr(self, n) is None else getattr(self, n) for n, d in op.takes.items()}
        return op.fill(SimpleNamespace(op=self.op, **found), shape)

    def after(self, shape: Shape) -> Shape:
        """Shape of one sample behind this layer."""
        op = OPS[self.op]
        if op.ranks and len(shape) not in op.ranks:
            ranks = " or ".join(str(r) for r in op.ranks)
            raise FastSNNError(f"{self.op} works on samples of {ranks} dimensions, got {list(shape)}")
        v = self.values(shape)
        arriving = op.features(shape, v)
        if self.features is not None and arriving is not None and self.features != arriving:
            raise FastSNNError(f"{self.op} says features = {self.features}, but {arriving} come in from {list(shape)}")
        out = op.shape(v, shape)
        if any(n < 1 for n in out):
            raise FastSNNError(f"{self.op} makes {list(out)} out of {list(shape)}")
        return out

    def build(self, shape: Shape | None = None) -> Any:
        """The `nn.Module`; without the `shape` that comes in, `features` must be given where the operation needs it."""
        op, v = OPS[self.op], self.values(shape)
        if "features" in op.takes and v.features is None:
            v.features = op.features(shape, v) if shape is not None else None
            if v.features is None:
                raise FastSNNError(f"{self.op} needs features: nothing before it says how many come in")
        return op.build(v)


FIELDS = tuple(n for n in Layer.__annotations__ if n != "op")
