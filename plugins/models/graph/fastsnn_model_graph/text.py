"""Calls as text: ``cat((a, b), dim=1)`` or ``x.transpose(1, 2)``, parsed against a list of allowed names.

Nothing is evaluated: the text is read with `ast`, and only calls on the lists below, names of other steps, numbers,
strings, tuples, lists and slices are understood.
"""

from __future__ import annotations

import ast
import math
import operator
from typing import Any

import torch
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError, did_you_mean
from fastsnn_model_graph.steps import Ref, Step


def callables(where: Any, names: str) -> dict[str, Any]:
    """Functions of a module by name."""
    return {name: getattr(where, name) for name in names.split()}


FUNCTIONS: dict[str, Any] = {
    **callables(operator, """add sub mul truediv floordiv mod pow neg matmul getitem eq ne lt le gt ge and_ or_ xor
        invert"""),
    "getattr": getattr,
    **callables(F, """relu relu6 gelu silu mish selu elu celu leaky_relu prelu hardswish hardsigmoid hardtanh softplus
        softsign logsigmoid tanhshrink hardshrink softshrink glu threshold softmin softmax log_softmax normalize pad
        interpolate one_hot scaled_dot_product_attention linear bilinear conv1d conv2d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d layer_norm rms_norm group_norm batch_norm instance_norm local_response_norm
        embedding dropout max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d pixel_shuffle pixel_unshuffle channel_shuffle unfold fold grid_sample affine_grid
        cosine_similarity"""),
    **callables(torch, """cat stack flatten reshape transpose permute unsqueeze squeeze chunk split unbind mean sum amax
        amin exp expm1 log log1p log2 sqrt rsqrt square abs sign sin cos tanh sigmoid erf clamp floor ceil round
        reciprocal maximum minimum einsum bmm addmm baddbmm where arange zeros ones full zeros_like ones_like full_like
        roll flip var std norm argmax argmin max min prod logsumexp cumsum outer tril triu gather index_select
        repeat_interleave logical_not logical_and logical_or masked_fill narrow movedim swapaxes unflatten tile
        broadcast_to lerp addcmul clone"""),
}  # fmt: skip
ALIASES: dict[Any, str] = {
    torch.add: "add", torch.sub: "sub", torch.mul: "mul", torch.div: "truediv", torch.true_divide: "truediv",
    torch.matmul: "matmul", torch.pow: "pow", torch.neg: "neg", torch.relu: "relu", torch.softmax: "softmax",
    torch.concat: "cat", F.sigmoid: "sigmoid", F.tanh: "tanh", operator.iadd: "add", operator.imul: "mul",
    operator.isub: "sub", operator.itruediv: "truediv", operator.ifloordiv: "floordiv", operator.imod: "mod",
    operator.ipow: "pow", operator.imatmul: "matmul", operator.iand: "and_", operator.ior: "or_", operator.ixor: "xor",
    torch.subtract: "sub", torch.multiply: "mul", torch.divide: "truediv", torch.swapdims: "swapaxes",
    torch.log_softmax: "log_softmax", torch.layer_norm: "layer_norm", torch.selu: "selu", torch.celu: "celu",
    torch.conv1d: "conv1d", torch.conv2d: "conv2d", torch.conv3d: "conv3d", torch.prelu: "prelu",
    torch.pixel_shuffle: "pixel_shuffle", torch.max_pool1d: "max_pool1d", torch.max_pool2d: "max_pool2d",
    torch.avg_pool1d: "avg_pool1d", torch.adaptive_avg_pool1d: "adaptive_avg_pool1d",
    torch.cosine_similarity: "cosine_similarity", torch.clip: "clamp", torch.absolute: "abs",
}  # fmt: skip
_METHODS = """
    add sub mul div matmul bmm neg pow exp expm1 log log1p sqrt rsqrt square reciprocal abs sign sin cos tanh sigmoid
    erf relu softmax log_softmax clamp clip clamp_min clamp_max floor ceil round mean sum amax amin max min argmax
    argmin prod var std norm logsumexp cumsum view reshape flatten unflatten transpose swapaxes permute movedim
    unsqueeze squeeze expand expand_as repeat repeat_interleave chunk split unbind contiguous size dim numel float
    double int long
    bool to type type_as clone detach masked_fill gather index_select narrow select tril triu roll flip view_as
    reshape_as t new_zeros new_ones new_full eq ne lt le gt ge logical_not logical_and logical_or true_divide subtract
    multiply addcmul lerp maximum minimum unfold
"""
METHODS = frozenset(_METHODS.split())
ATTRIBUTES = frozenset(("shape", "ndim", "dtype", "device", "T", "mT"))
NAMES: dict[Any, str] = {**{f: name for name, f in FUNCTIONS.items()}, **ALIASES}


class CallError(FastSNNError):
    """A call that is not understood: says which part, and what is possible."""


def function_name(function: Any) -> str | None:
    """How a function is called in a spec, or None where it is not on the list."""
    try:
        return NAMES.get(function)
    except TypeError:  # not hashable
        return None


def call_text(step: Step) -> str | None:
    """A call step as text, or None where it has no text."""
    if step.method and step.target not in METHODS:
        return None
    if not step.method and step.target not in FUNCTIONS:
        return None
    if step.target == "getattr" and step.args[1] not in ATTRIBUTES:
        return None
    try:
        args = [argument_text(a) for a in step.args] + [f"{k}={argument_text(v)}" for k, v in step.kwargs.items()]
    except CallError:
        return None
    if step.method:
        return f"{args[0]}.{step.target}({', '.join(args[1:])})"
    return f"{step.target}({', '.join(args)})"


def argument_text(value: Any) -> str:
    """An argument as text."""
    if isinstance(value, Ref):
        return value.name
    if isinstance(value, slice):
        return f"slice({', '.join(argument_text(v) for v in (value.start, value.stop, value.step))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(argument_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(argument_text, value))}]"
    if isinstance(value, torch.dtype):
        return f"dtype({str(value).removeprefix('torch.')!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"number({str(value)!r})"
    if value is None or value is Ellipsis or isinstance(value, bool | int | float | str):
        return "..." if value is Ellipsis else repr(value)
    raise CallError(f"{type(value).__name__} {value!r} cannot be written")


def parse_call(text: str, name: str) -> Step:
    """A call as a step called `name`."""
    node = parse_expression(text)
    if not isinstance(node, ast.Call):
        raise CallError(f"{text!r} is no call; write a function of other nodes, such as add(x, y)")
    if any(k.arg is None for k in node.keywords):
        raise CallError(f"{text!r}: ** is not understood")
    kwargs = {str(k.arg): node_value(k.value, text) for k in node.keywords}
    args = [node_value(a, text) for a in node.args]
    if isinstance(node.func, ast.Attribute):
        method = node.func.attr
        if method not in METHODS:
            raise CallError(f"{text!r}: no method {method!r}; {did_you_mean(method, METHODS, 'methods')}")
        return Step(name, "call", method, (node_value(node.func.value, text), *args), kwargs, method=True)
    function = node.func.id if isinstance(node.func, ast.Name) else ""
    if function not in FUNCTIONS:
        raise CallError(f"{text!r}: no function {function!r}; {did_you_mean(function, FUNCTIONS, 'functions')}")
    if function == "getattr" and (len(args) != 2 or args[1] not in ATTRIBUTES):
        raise CallError(f"{text!r}: attributes that may be read: {', '.join(sorted(ATTRIBUTES))}")
    return Step(name, "call", function, tuple(args), kwargs, FUNCTIONS[function])


def arguments(text: str) -> tuple[Any, ...]:
    """Arguments alone: ``x`` or ``x, y``."""
    node = parse_expression(f"f({text})")
    assert isinstance(node, ast.Call)
    if node.keywords:
        raise CallError(f"{text!r}: a layer takes no keywords")
    return tuple(node_value(a, text) for a in node.args)


def parse_expression(text: str) -> ast.expr:
    """The expression, or an error."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise CallError(f"{text!r} cannot be read: {error}") from None


def node_value(node: ast.expr, text: str) -> Any:
    """A name, a number, a string, or a tuple, list or slice of them."""
    if isinstance(node, ast.Constant) and (
        node.value is None or node.value is ... or isinstance(node.value, bool | int | float | str)
    ):
        return node.value
    if isinstance(node, ast.Name):
        return Ref(node.id)
    if isinstance(node, ast.Tuple):
        return tuple(node_value(item, text) for item in node.elts)
    if isinstance(node, ast.List):
        return [node_value(item, text) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        inner = [node_value(a, text) for a in node.args]
        if node.func.id == "slice" and 1 <= len(inner) <= 3:
            return slice(*inner)
        if node.func.id == "dtype" and inner in ([n] for n in DTYPES):
            return DTYPES[inner[0]]
        if node.func.id == "number" and inner in (["inf"], ["-inf"], ["nan"]):
            return float(inner[0])
    raise CallError(f"{text!r}: {ast.unparse(node)!r} is not understood")


DTYPES = {n: getattr(torch, n) for n in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")}
