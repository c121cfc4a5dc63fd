"""More of lowering: projections with 4-bit and ternary weights, and what is asked of forms whatever their weights."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from torch import Tensor

from fastsnn_core.lowering import DecoderPlan, FeedforwardForm, MatrixForm

EXACT_ZEROS = ("relu", "relu2")  # activations that are 0 for whatever is below 0


@frozen(eq=False)
class FourBitForm(MatrixForm):
    """y = (Σ_g p_g) · V + b_o, groups one after the other; p_g = float(Σ_i c_i q_i) · d_go + float(Σ_i c_i) · m_go.

    Without a minimum p_g = float(Σ_i c_i (q_i - 8)) · d_go. weight uint8 ``[in, ⌈out/2⌉]``: byte j of an input has the
    codes q of the outputs j (low bits) and j + ⌈out/2⌉; scale d and minimum m float32 ``[groups, out]`` of float16
    numbers (m empty for none); `group` inputs share them. Evaluated by `fastsnn_integer.four_bits`.
    """

    minimum: Tensor = field(kw_only=True)
    group: int = field(kw_only=True)


@frozen(eq=False)
class TernaryForm(MatrixForm):
    """y = (float(Σ_i c_i t_oi) · s_o) · V + b_o with t in {-1, 0, 1}: the bits of INT8 codes t.

    weight uint8 ``[in, q]``, q = ⌈out/4⌉: byte j of an input has the codes t + 1 of the outputs j, j + q, j + 2 q and
    j + 3 q, from the low bits up; scale s float32 ``[out]``. Evaluated by `fastsnn_integer.ternary`.
    """


def packed(m: MatrixForm | None) -> bool:
    """Are a projection's weights below 8 bits, several in a byte?"""
    return isinstance(m, FourBitForm | TernaryForm)


def outputs(m: MatrixForm) -> int:
    """Numbers that leave a projection."""
    if isinstance(m, FourBitForm):
        return m.scale.shape[1]
    return m.scale.shape[0] if isinstance(m, TernaryForm) else m.weight.shape[0]


def inputs(m: MatrixForm) -> int:
    """Counts that enter a projection."""
    return m.weight.shape[0] if packed(m) else m.weight.shape[1]


def vocabulary(plan: DecoderPlan) -> int:
    """Tokens of a plan's table, which may have 4 bits."""
    table: Any = plan.table
    return outputs(table) if isinstance(table, FourBitForm) else len(table)


def gate_first(f: FeedforwardForm) -> bool:
    """Do gates shut exactly, so that `up` need be computed only behind open ones? Both in INT8."""
    shuts = f.activation in EXACT_ZEROS or f.gate_threshold is not None
    return f.gate is not None and shuts and not any(packed(m) for m in (f.gate, f.up))


def no_integer_form(model: Any) -> str:
    """The error for a model that has none."""
    name = getattr(getattr(model, "spec", None), "name", type(model).__name__)
    return f"{name} has no integer form; decoder, sequential and graph have one"
