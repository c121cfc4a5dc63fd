"""Lowering: what a module that has a fused form says of itself, as plain data that kernels run.

A kernel never asks what a module is called. A module that can be part of a fused decoding step or of fused prompt
reading has a method ``lower()``, which returns one of the forms below with *every* constant its forward uses:

=====================  =================================  ==========================================================
module                 ``lower()`` returns                and further
=====================  =================================  ==========================================================
neuron                 `SpikeRule`                        ``threshold(x)``: V, with gradient (calibration)
spike site             `SiteForm`
INT8 projection        `MatrixForm`
RMSNorm                `NormForm`
attention (mixer)      tuple of `LinearAttentionForm`,    ``pack_state(state)``, ``unpack_state(pairs)``: the state of
                       `SoftmaxAttentionForm`             one stream, a pair of tensors per form
feed-forward layer     `FeedforwardForm`
=====================  =================================  ==========================================================

A module without ``lower()``, or one whose constants have no form, is `Unsupported`: it runs as it is, and the message
names it. The forms hold no code but the module they were made of (`definition` fields): that is their naive twin, and
what the conformance kit compares kernels with. `fastsnn_integer.reference` evaluates forms in plain torch;
`fastsnn_integer.decode_step` says what a kernel makes of a whole plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import field, frozen
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import former


class Unsupported(FastSNNError):
    """Why a module, a model or its state has no fused form; `where` names the module."""

    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(f"{where}: {why}" if where else why)
        self.why, self.where = why, where


def definition() -> Any:
    """A field for the module a form was made of: its naive twin, no part of the form's data."""
    return field(default=None, repr=False, metadata={"definition": True})


# -- parts --------------------------------------------------------------------------------------------------------


@frozen
class SpikeRule:
    """Counts c and threshold V of a row x ``[D]``, from that row alone, in float32.

        V = clamp(s · gain / divisor, v_min, v_max), 1 where that is 0
        c = round(clip(x / V, -bound, bound)), 0 where |x / V| < dead_zone

    `statistic` s: ``mean_abs`` (Σ|x| / D), ``rms`` (√(Σx² / D)), both folded as in `fastsnn_integer.deterministic`, or
    ``max_abs``. With `burst` b the maximum is the (b + 1)-th largest |x|, and the b larger ones are not clipped. round
    goes half to even. The operations are done in the order written; gain = 1 and divisor = 1 change nothing.
    """

    statistic: str
    gain: float = 1.0
    divisor: float = 1.0
    v_min: float = 1e-5
    v_max: float = 1e4
    bound: float = float("inf")
    dead_zone: float = 0.0
    burst: int = 0


INT8_PER_TOKEN = SpikeRule("max_abs", divisor=127.0, v_min=0.0, v_max=float("inf"))  # numbers that no neuron counts


@frozen(eq=False)
class SiteForm:
    """x - centre, then counts by the rule. Without a `neuron` the rule is `INT8_PER_TOKEN`."""

    rule: SpikeRule = INT8_PER_TOKEN
    centre: Tensor | None = None
    neuron: nn.Module | None = definition()


@frozen(eq=False)
class MatrixForm:
    """y = float(Σ_i c_i w_oi) · s_o · V + b_o: weight INT8 ``[out, in]``, scale and bias float32 ``[out]``."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None
    layer: nn.Module | None = definition()


@frozen(eq=False)
class NormForm:
    """x / √(Σx² / D + eps) · weight ``[D]``, folded as in `fastsnn_integer.deterministic`."""

    weight: Tensor
    eps: float


# -- attention ----------------------------------------------------------------------------------------------------


@frozen(eq=False)
class GateForm:
    """log g = max(logsigmoid(up(down(spikes))) / tau, floor), one per key channel ``[G·K]``.

    `down` reads the layer's counts, `up` its output as INT8 per token.
    """

    down: MatrixForm
    up: MatrixForm
    tau: float
    floor: float


@frozen(eq=False)
class LinearAttentionForm:
    """S_t = g_t S_{t-1} + φ(k_t)ᵀ v_t;  z_t = g_t z_{t-1} + φ(k_t);  r = query_scale · φ(q_t).

    o_t = r S_t / (r · z_t + eps), or norm(r S_t) per head where there is a `norm`. φ is `feature`, an activation of
    `fastsnn_integer.deterministic`; g = exp(-decay), or what the `gate` says. State: S ``[G,K,V]`` and z ``[G,K]``.
    """

    feature: str
    decay: float = 0.0
    gate: GateForm | None = None
    query_scale: float = 1.0
    norm: NormForm | None = None
    eps: float = 0.0


@frozen(eq=False)
class SoftmaxAttentionForm:
    """o_t = Σ_j softmax_j(q_t · k_j / √K) v_j over the last `window` tokens, itself included (0: all so far).

    `rotary`: q and k are rotated by their positions. State: keys and values ``[n,G,K]`` of this document, oldest first.
    """

    window: int = 0
    rotary: bool = True


MixerForm = LinearAttentionForm | SoftmaxAttentionForm


@frozen(eq=False)
class AttentionForm:
    """q, k, v = projections of the inner site's counts (and their norms per head); mixers side by side; out."""

    inner: SiteForm
    q: MatrixForm
    k: MatrixForm
    v: MatrixForm
    mixers: tuple[MixerForm, ...]
    outer: SiteForm
    out: MatrixForm
    q_norm: NormForm | None = None
    k_norm: NormForm | None = None
    out_norm: NormForm | None = None  # in front of the outer site


# -- channels, blocks, decoder ------------------------------------------------------------------------------------


@frozen(eq=False)
class FeedforwardForm:
    """h = act(gate c) · up c, or act(up c) without a gate, on the inner site's counts c; down on the counts of h.

    `activation` is one of `fastsnn_integer.deterministic`. act(gate c) counts as 0 where its magnitude is below
    `gate_threshold` ``[hidden]``, up c as relu(up c) with `up_relu`. `state` is what the module itself would hand back.
    """

    inner: SiteForm
    up: MatrixForm
    activation: str
    hidden: SiteForm
    down: MatrixForm
    gate: MatrixForm | None = None
    gate_threshold: Tensor | None = None
    up_relu: bool = False
    hidden_norm: NormForm | None = None  # in front of the hidden site
    state: Any = field(default=None, repr=False)


@frozen(eq=False)
class BlockPlan:
    """x ← x + attention(norm(x)), then x ← x + feedforward(norm(x)); `name` is the module's, for errors."""

    name: str
    attention_norm: NormForm
    attention: AttentionForm
    feedforward_norm: NormForm
    feedforward: FeedforwardForm


@frozen(eq=False)
class DecoderPlan:
    """A whole decoder: the embedding (codes and a scale per row, or float rows), blocks, the last norm, the head.

    ``angles(P)`` gives cos and sin ``[≥P, K/2]`` of the first positions.
    """

    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    table: Tensor
    table_scale: Tensor | None
    blocks: tuple[BlockPlan, ...]
    norm: NormForm
    site: SiteForm
    head: MatrixForm
    angles: Callable[[int], tuple[Tensor, Tensor]] = field(repr=False, metadata={"definition": True})


# -- asking modules -----------------------------------------------------------------------------------------------


def lower(module: Any, name: str, **options: Any) -> Any:
    """``module.lower(**options)``; `Unsupported`, by `name`, where the module has none or only an inherited one.

    A class that inherits ``lower()`` and changes anything of the class that wrote it computes something else; so does
    a module whose forward was replaced.
    """
    kind = type(module).__name__
    if not callable(getattr(module, "lower", None)):
        raise Unsupported(f"{kind} has no fused form (no method lower), so it runs as it is", name)
    if "forward" in vars(module):
        raise Unsupported(f"the forward of this {kind} was replaced", name)
    if changed := overridden_attribute(type(module)):
        raise Unsupported(f"{kind} changes {changed} but inherits lower(); it needs one of its own", name)
    try:
        return module.lower(**options)
    except Unsupported as reason:
        raise type(reason)(reason.why, ".".join(part for part in (name, reason.where) if part)) from None


def overridden_attribute(cls: type) -> str:
    """The first attribute that a subclass of the class that defines ``lower`` has replaced; "" for none."""
    order = cls.__mro__
    owner = next(i for i, base in enumerate(order) if "lower" in vars(base))
    taken = {name for base in order[owner:] if base not in nn.Module.__mro__ for name in vars(base)} | {"forward"}
    for base in order[:owner]:
        for name in vars(base):
            if name in taken and (not name.startswith("__") or name == "__call__"):
                return f"{base.__name__}.{name}"
    return ""


__getattr__ = former(__name__)  # what moved into fastsnn_integer
