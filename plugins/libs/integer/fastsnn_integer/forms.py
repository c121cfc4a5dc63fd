"""More of lowering: projections with 4-bit weights, and what is asked of forms whatever the bits of their weights."""

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


def outputs(m: MatrixForm) -> int:
    """Numbers that leave a projection."""
    return m.scale.shape[1] if isinstance(m, FourBitForm) else m.weight.shape[0]


def inputs(m: MatrixForm) -> int:
    """Counts that enter a projection."""
    return m.weight.shape[0] if isinstance(m, FourBitForm) else m.weight.shape[1]


def vocabulary(plan: DecoderPlan) -> int:
    """Tokens of a plan's table, which may have 4 bits."""
    table: Any = plan.table
    return outputs(table) if isinstance(table, FourBitForm) else len(table)


def gate_first(f: FeedforwardForm) -> bool:
    """Do gates shut exactly, so that `up` need be computed only behind open ones? Both in INT8."""
    shuts = f.activation in EXACT_ZEROS or f.gate_threshold is not None
    return f.gate is not None and shuts and not any(isinstance(m, FourBitForm) for m in (f.gate, f.up))
