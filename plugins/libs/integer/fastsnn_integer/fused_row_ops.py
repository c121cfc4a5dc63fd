"""Fused row kernels between the INT8 products of a prompt: dequantise, residual, RMSNorm, activation, requantise.

Behind a product of counts there are integer sums; before the next one there are counts again. Everything between is
done row by row, so it can be one pass over memory that stays in cache:

    residual   x ← x + dequantised sums;  counts of norm(x)            before q, k, v and before up, gate
    hidden     counts of act(gate) · up                                before down
    heads      q, k, v with biases, norms per head and rotary positions

Each naive twin is made of the modules' own operations (the site's neuron, `fastsnn_integer.deterministic`), and
kernels give its bits. `project` is the product. Counts leave in 8 or 16 bits where all of them fit and every row's sums
fit 32 bits (`narrowed`), and as float32 where one does not (or is not finite): then the layers behind take the ordinary
way, which has digits for large counts and errors for what is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core.lowering import MatrixForm, NormForm, SiteForm
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_events.linear import COUNT_LINEAR
from fastsnn_integer import deterministic, reference
from fastsnn_integer.known_operands import run_operator
from fastsnn_integer.plan_check import check_site
from fastsnn_modules.operands import (
    OperandError,
    Operands,
    OperandTypeError,
    check_choice,
    check_finite_numbers,
    imported_later,
    shown,
    with_every_tensor,
)

LARGEST, LARGER = 127, 32767  # counts of 8 and of 16 bits
LIMIT = 1 << 24  # Σ|c| of a row whose sums fit 32 bits, whatever the weights: 2^24 · 128 = 2^31


@frozen(eq=False)
class CountRows:
    """Counts ``[N, D]`` (int8; int16 or float32 where 8 bits are too few), V ``[N, 1]``, and how many are not 0."""

    counts: Tensor
    v: Tensor
    active: int

    @property
    def narrow(self) -> bool:
        """Do they have 8 or 16 bits, and their sums 32?"""
        return self.counts.dtype in (torch.int8, torch.int16)

    def spikes(self, shape: tuple[int, ...]) -> SpikeTensor:
        """As a module's input ``[*shape, D]``."""
        return SpikeTensor(self.counts.view(*shape, -1), self.v.view(*shape, 1))


@frozen(eq=False)
class Sums:
    """A projection before its scaling: y = float(total) · scale · V + bias; total ``[N, out]`` in 32 bits."""

    total: Tensor
    matrix: MatrixForm
    v: Tensor

    def dequantised(self) -> Tensor:
        """y ``[N, out]``."""
        y = self.total.to(torch.float32) * self.matrix.scale * self.v
        return y if self.matrix.bias is None else y + self.matrix.bias


def fire_rows(x: Tensor, site: SiteForm) -> CountRows:
    """Counts of rows ``[N, D]``, made by the site's neuron itself."""
    counts, v = reference.fire(x, site)
    counts = narrowed(counts)
    return CountRows(counts, v, int(torch.count_nonzero(counts)))


def narrowed(counts: Tensor) -> Tensor:
    """Counts ``[N, D]`` in 8 bits, or in 16 if the sums fit 32; as they are where neither holds them."""
    size = counts.abs()
    if bool((size <= LARGEST).all()):
        return counts.to(torch.int8)
    if bool((size <= LARGER).all()) and float(size.sum(1, dtype=torch.float64).max()) < LIMIT:
        return counts.to(torch.int16)
    return counts


def residual_naive(x: Tensor, add: Sums | Tensor | None, norm: NormForm | None, site: SiteForm) -> CountRows:
    """The definition: `x` ``[N, D]`` takes in `add` in place, then counts of its norm (of itself without one)."""
    if add is not None:
        x += add.dequantised() if isinstance(add, Sums) else add
    return fire_rows(x if norm is None else deterministic.norm_naive(x, norm.weight, norm.eps), site)


def hidden_naive(
    up: Sums, gate: Sums | None, activation: str, site: SiteForm, gate_threshold: Tensor | None = None,
    up_relu: bool = False,
) -> CountRows:  # fmt: skip
    """The definition: counts of act(gate) · up, or of act(up); gates below their threshold ``[D]`` are 0.

    With `up_relu` it is act(gate) · relu(up).
    """
    first = deterministic.FORMS[activation]((up if gate is None else gate).dequantised())
    first = reference.shut(first, gate_threshold)
    if gate is None:
        return fire_rows(first, site)
    second = up.dequantised()
    return fire_rows(first * (deterministic.FORMS["relu"](second) if up_relu else second), site)


def heads_naive(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[NormForm | None, NormForm | None], angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: q ``[N, H, K]``, k and v ``[N, G, K]``; `angles` are cos and sin ``[N, K/2]``, or None."""
    rows = [s.dequantised().unflatten(-1, (-1, width)) for s in (q, k, v)]
    for i, norm in enumerate(norms):
        if norm is not None:
            rows[i] = deterministic.norm_naive(rows[i].flatten(0, 1), norm.weight, norm.eps).view(rows[i].shape)
    if angles is not None:
        cos, sin = (a.to(torch.float32) for a in angles)
        rows[:2] = [reference.rotate(x, cos, sin) for x in rows[:2]]
    return rows[0], rows[1], rows[2]


def project_rows_naive(counts: CountRows, weight: Tensor) -> Tensor:
    """The definition: ``counts @ weightᵀ``; in 32 bits where the counts make sure that they hold it, else in 64."""
    total = COUNT_LINEAR(weight.device.type, counts.counts, weight)
    return total.to(torch.int32) if within_32_bits(counts.counts) else total


def within_32_bits(counts: Tensor) -> bool:
    """Do sums of counts ``[N, D]`` with weights of 8 bits fit 32? The numbers say where D alone does not."""
    if counts.dtype == torch.int8 and counts.shape[1] < LIMIT // (LARGEST + 1):
        return True
    return not counts.numel() or float(counts.to(torch.float64).abs().sum(1).max()) < LIMIT


def check_residual(x: Tensor, add: Sums | Tensor | None, norm: NormForm | None, site: SiteForm) -> None:
    """The operands of `residual_naive`; `x` is written to, so its numbers must be its own."""
    name = "rows_residual"
    rows = Operands(name, "x [N,D] float32", "add [N,D] float32", "norm [D] float32")
    if isinstance(x, Tensor) and x.ndim == 2:
        check_site(f"{name}: site", site, x.shape[1])
    if add is not None and not isinstance(add, Sums | Tensor):
        raise OperandTypeError(f"{name}: add must be Sums, a tensor or None, got {type(add).__name__}")
    total = add if isinstance(add, Tensor) else None
    weight = None if norm is None else norm_weight(name, norm)
    sizes = rows.some((i, t) for i, t in enumerate((x, total, weight)) if t is not None)
    if isinstance(add, Sums):
        check_sums_form(name, "add", add, sizes["N"], sizes["D"])
    if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride())):
        raise OperandError(f"{name}: x is expanded (strides {x.stride()}) and cannot be written to; pass a copy")


def check_hidden(
    up: Sums, gate: Sums | None, activation: str, site: SiteForm, gate_threshold: Tensor | None = None,
    up_relu: bool = False,
) -> None:  # fmt: skip
    """The operands of `hidden_naive`."""
    name = "rows_hidden"
    rows, wide = check_sums_form(name, "up", up)
    check_site(f"{name}: site", site, wide)
    if gate is not None:
        check_sums_form(name, "gate", gate, rows, wide)
    check_choice(name, "activation", activation, deterministic.FORMS)
    if not isinstance(up_relu, bool) or (up_relu and gate is None):
        raise OperandError(f"{name}: up_relu is True only where there is a gate, got {up_relu!r}")
    if gate_threshold is not None:
        sizes = Operands(name, "gate_threshold [D] float32")(gate_threshold)
        if gate is None or sizes["D"] != wide:
            found = "there is no gate" if gate is None else f"there are {wide} gates"
            raise OperandError(f"{name}: gate_threshold has {shown(gate_threshold)}; {found}")


def check_heads(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[NormForm | None, NormForm | None], angles: Any
) -> None:
    """The operands of `heads_naive`."""
    name = "rows_heads"
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise OperandTypeError(f"{name}: width must be a number of channels, got {width!r}")
    rows, wide = check_sums_form(name, "q", q)
    _, narrow = check_sums_form(name, "k", k, rows)
    check_sums_form(name, "v", v, rows, narrow)
    if wide % width or narrow % width:
        raise OperandError(f"{name}: q and k have {wide} and {narrow} channels, no multiples of width = {width}")
    if not isinstance(norms, tuple | list) or len(norms) != 2:
        raise OperandTypeError(f"{name}: norms must be a pair, of q and k; each a NormForm or None")
    for norm in norms:
        if norm is not None and tuple(norm_weight(name, norm).shape) != (width,):
            raise OperandError(f"{name}: a norm has {shown(norm.weight)}; a head has {width} channels")
    if angles is None:
        return
    if not isinstance(angles, tuple | list) or len(angles) != 2:
        raise OperandTypeError(f"{name}: angles must be (cos, sin), got {type(angles).__name__}")
    for what, t in zip(("cos", "sin"), angles):
        if not isinstance(t, Tensor) or not t.is_floating_point() or tuple(t.shape) != (rows, width // 2):
            raise OperandError(f"{name}: {what} must be float [N, K/2] = [{rows}, {width // 2}], got {shown(t)}")
    if width % 2:
        raise OperandError(f"{name}: rotary positions need an even width, got {width}")


def check_project(counts: CountRows, weight: Tensor) -> None:
    """The operands of `project_rows_naive`."""
    is_form("rows_project", "counts", counts, CountRows)
    if not isinstance(counts.active, int) or counts.active < 0:
        raise OperandTypeError(f"rows_project: active is how many counts are not 0, got {counts.active!r}")
    Operands("rows_project", "counts [N,D] number", "weight [O,D] int8")(counts.counts, weight)


def norm_weight(operator: str, norm: Any) -> Tensor:
    """The weight ``[D]`` of a norm whose parts are what they should be."""
    is_form(operator, "norm", norm, NormForm)
    check_finite_numbers(operator, eps=norm.eps)
    Operands(operator, "norm [D] float32")(norm.weight)
    return norm.weight


def is_form(operator: str, name: str, given: Any, kind: type) -> Any:
    """`given`, if it is of this class."""
    if not isinstance(given, kind):
        raise OperandTypeError(f"{operator}: {name} must be {kind.__name__}, got {type(given).__name__}")
    return given


def check_sums_form(operator: str, name: str, s: Any, rows: int = -1, wide: int = -1) -> tuple[int, int]:
    """Rows and outputs of `Sums`, whose parts fit each other (and the sizes wanted, where these are given)."""
    is_form(operator, name, s, Sums)
    matrix = is_form(operator, f"{name}.matrix", s.matrix, MatrixForm)
    parts = Operands(operator, "total [N,O] index", "scale [O] float32", "v [N,1] float32", "bias [O] float32")
    sizes = parts.some((i, t) for i, t in enumerate((s.total, matrix.scale, s.v, matrix.bias)) if t is not None)
    found = sizes["N"], sizes["O"]
    if (rows >= 0 and found[0] != rows) or (wide >= 0 and found[1] != wide):
        wanted = [rows if rows >= 0 else found[0], wide if wide >= 0 else found[1]]
        raise OperandError(f"{operator}: {name} must be of shape {wanted}, got {list(found)}")
    return found


RESIDUAL = Operator(
    "rows_residual",
    residual_naive,
    plain=True,
    check=with_every_tensor("rows_residual", check_residual),
    samples=imported_later("fastsnn_integer.samples.residual"),
)
HIDDEN = Operator(
    "rows_hidden",
    hidden_naive,
    plain=True,
    check=with_every_tensor("rows_hidden", check_hidden),
    samples=imported_later("fastsnn_integer.samples.hidden"),
)
HEADS = Operator(
    "rows_heads",
    heads_naive,
    plain=True,
    check=with_every_tensor("rows_heads", check_heads),
    samples=imported_later("fastsnn_integer.samples.heads"),
)
PROJECT = Operator(
    "rows_project",
    project_rows_naive,
    plain=True,
    check=with_every_tensor("rows_project", check_project),
    samples=imported_later("fastsnn_integer.samples.project"),
)


def residual(x: Tensor, add: Sums | Tensor | None, norm: NormForm | None, site: SiteForm) -> CountRows:
    """`residual_naive` by the kernel in use."""
    return run_operator(RESIDUAL, x.device.type, x, add, norm, site)


def hidden(
    up: Sums, gate: Sums | None, activation: str, site: SiteForm, gate_threshold: Tensor | None = None,
    up_relu: bool = False,
) -> CountRows:  # fmt: skip
    """`hidden_naive` by the kernel in use."""
    return run_operator(HIDDEN, up.total.device.type, up, gate, activation, site, gate_threshold, up_relu)


def heads(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[NormForm | None, NormForm | None], angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`heads_naive` by the kernel in use."""
    return run_operator(HEADS, q.total.device.type, q, k, v, width, norms, angles)


def project(counts: CountRows, matrix: MatrixForm) -> Sums:
    """The product of counts of 8 or 16 bits."""
    return Sums(run_operator(PROJECT, counts.counts.device.type, counts, matrix.weight), matrix, counts.v)
