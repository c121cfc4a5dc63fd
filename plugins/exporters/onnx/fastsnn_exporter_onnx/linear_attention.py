"""Linear attention as ONNX Runtime's own operator, ``com.microsoft.LinearAttention``, where it has that.

    S_t = exp(g_t) S_{t-1} + k_tᵀ v_t,   o_t = q_t S_t      with v = [v, 1]: then S = [S, z] and o = [o, n]

The operator knows no normaliser: a channel of ones beside the values makes it the last column of S and of o.
Source: the operator's schema in ONNX Runtime 1.32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastsnn_linear_scan import GRAPH_FORM, State, linear_scan_loop

OPERATOR = "com.microsoft::LinearAttention"


def as_operator(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: State
) -> tuple[Tensor, Tensor, State]:  # the shapes are those of fastsnn_linear_scan
    """``(o [B,T,H,V], n [B,T,H], (S [B,G,K,V], z [B,G,K]))`` as one node of the graph."""
    (b, t, heads, width), groups, values = q.shape, k.shape[2], v.shape[-1]
    inputs = [
        q.flatten(2),
        k.flatten(2),
        torch.cat([v, torch.ones_like(v[..., :1])], -1).flatten(2),
        torch.cat([state[0], state[1][..., None]], -1),
        *(() if log_g is None else (log_g.flatten(2),)),
    ]
    rule = "linear" if log_g is None else "gated"
    out, after = torch.onnx.ops.symbolic_multi_out(
        OPERATOR,
        inputs,
        {"q_num_heads": heads, "kv_num_heads": groups, "scale": 1.0, "update_rule": rule},
        dtypes=[torch.float32, torch.float32],
        shapes=[(b, t, heads * (values + 1)), (b, groups, width, values + 1)],
        version=1,
    )
    out = out.unflatten(2, (heads, values + 1))
    return out[..., :values], out[..., values], (after[..., :values], after[..., values])


@contextmanager
def written_as_operator(wanted: bool) -> Iterator[list[str]]:
    """Inside, an exported graph has the operator for every linear attention, or ONNX' Scan; a name for each met."""
    met: list[str] = []

    def form(*operands: Any) -> tuple[Tensor, Tensor, State]:
        met.append(OPERATOR if wanted else "Scan")
        return (as_operator if wanted else linear_scan_loop)(*operands)

    before = GRAPH_FORM.set(form)
    try:
        yield met
    finally:
        GRAPH_FORM.reset(before)


@functools.cache
def runtime_has_operator() -> bool:
    """Whether the installed ONNX Runtime makes a session of one such node on the CPU."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = {"q": [1, 1, 2], "k": [1, 1, 2], "v": [1, 1, 2], "past": [1, 1, 2, 2], "g": [1, 1, 2]}
    made = {"o": [1, 1, 2], "present": [1, 1, 2, 2]}
    read, given = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in table.items()] for table in (names, made)
    )
    node = helper.make_node(
        "LinearAttention", list(names), list(made), domain="com.microsoft", q_num_heads=1, kv_num_heads=1,
        update_rule="gated",
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", read, given), opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # the runtime has an error class for each of its codes; all of them mean that it cannot
        return False
    return True
