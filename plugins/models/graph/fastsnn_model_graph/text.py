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

from fastsnn_core.errors import FastSNNError
from fastsnn_model_graph.steps import Ref, Step

FUNCTIONS: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow, "neg": operator.neg,
    "matmul": operator.matmul, "getitem": operator.getitem, "getattr": getattr,
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "softmax": F.softmax, "log_softmax": F.log_softmax,
    "normalize": F.normalize, "pad": F.pad, "interpolate": F.interpolate, "one_hot": F.one_hot,
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
    "cat": torch.cat, "stack": torch.stack, "flatten": torch.flatten, "reshape": torch.reshape,
    "transpose": torch.transpose, "permute": torch.permute, "unsqueeze": torch.unsqueeze, "squeeze": torch.squeeze,
    "chunk": torch.chunk, "split": torch.split, "unbind": torch.unbind, "mean": torch.mean, "sum": torch.sum,
    "amax": torch.amax, "amin": torch.amin, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "clamp": torch.clamp, "maximum": torch.maximum, "minimum": torch.minimum,
    "einsum": torch.einsum, "bmm": torch.bmm, "where": torch.where, "arange": torch.arange, "zeros": torch.zeros,
    "ones": torch.ones, "zeros_like": torch.zeros_like, "ones_like": torch.ones_like, "roll": torch.roll,
}  # fmt: skip
ALIASES: dict[Any, str] = {
    torch.add: "add", torch.sub: "sub", torch.mul: "mul", torch.div: "truediv", torch.true_divide: "truediv",
    torch.matmul: "matmul", torch.pow: "pow", torch.neg: "neg", torch.relu: "relu", torch.softmax: "softmax",
    torch.concat: "cat", F.sigmoid: "sigmoid", F.tanh: "tanh", operator.iadd: "add", operator.imul: "mul",
}  # fmt: skip
METHODS = frozenset((
    "add", "sub", "mul", "div", "matmul", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos",
    "tanh", "sigmoid", "relu", "softmax", "log_softmax", "clamp", "mean", "sum", "amax", "amin", "max", "min",
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "unsqueeze", "squeeze", "expand",
    "expand_as", "repeat", "chunk", "split", "unbind", "contiguous", "size", "dim", "float", "type_as",
    "masked_fill", "tril", "triu", "roll", "view_as", "t",
))  # fmt: skip
ATTRIBUTES = frozenset(("shape", "ndim", "dtype", "device", "T", "mT"))
NAMES: dict[Any, str] = {**{f: name for name, f in FUNCTIONS.items()}, **ALIASES}


class CallError(FastSNNError):
    """A call that is not understood: says which part, and what is possible."""


def name_of(function: Any) -> str | None:
    """How a function is called in a spec, or None where it is not on the list."""
    try:
        return NAMES.get(function)
    except TypeError:  # not hashable
        return None


def write(step: Step) -> str | None:
    """A call step as text, or None where it has no text."""
    if step.method and step.target not in METHODS:
        return None
    if not step.method and step.target not in FUNCTIONS:
        return None
    if step.target == "getattr" and step.args[1] not in ATTRIBUTES:
        return None
    try:
        args = [constant(a) for a in step.args] + [f"{k}={constant(v)}" for k, v in step.kwargs.items()]
    except CallError:
        return None
    if step.method:
        return f"{args[0]}.{step.target}({', '.join(args[1:])})"
    return f"{step.target}({', '.join(args)})"


def constant(value: Any) -> str:
    """An argument as text."""
    if isinstance(value, Ref):
        return value.name
    if isinstance(value, slice):
        return f"slice({', '.join(constant(v) for v in (value.start, value.stop, value.step))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(constant, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(constant, value))}]"
    if isinstance(value, torch.dtype):
        return f"dtype({str(value).removeprefix('torch.')!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"number({str(value)!r})"
    if value is None or value is Ellipsis or isinstance(value, bool | int | float | str):
        return "..." if value is Ellipsis else repr(value)
    raise CallError(f"{type(value).__name__} {value!r} cannot be written")


def read(text: str, name: str) -> Step:
    """A call as a step called `name`."""
    node = parsed(text)
    if not isinstance(node, ast.Call):
        raise CallError(f"{text!r} is no call; write a function of other nodes, such as add(x, y)")
    if any(k.arg is None for k in node.keywords):
        raise CallError(f"{text!r}: ** is not understood")
    kwargs = {str(k.arg): value(k.value, text) for k in node.keywords}
    args = [value(a, text) for a in node.args]
    if isinstance(node.func, ast.Attribute):
        method = node.func.attr
        if method not in METHODS:
            raise CallError(f"{text!r}: no method {method!r}; methods: {', '.join(sorted(METHODS))}")
        return Step(name, "call", method, (value(node.func.value, text), *args), kwargs, method=True)
    function = node.func.id if isinstance(node.func, ast.Name) else ""
    if function not in FUNCTIONS:
        raise CallError(f"{text!r}: no function {function!r}; functions: {', '.join(sorted(FUNCTIONS))}")
    if function == "getattr" and (len(args) != 2 or args[1] not in ATTRIBUTES):
        raise CallError(f"{text!r}: attributes that may be read: {', '.join(sorted(ATTRIBUTES))}")
    return Step(name, "call", function, tuple(args), kwargs, FUNCTIONS[function])


def arguments(text: str) -> tuple[Any, ...]:
    """Arguments alone: ``x`` or ``x, y``."""
    node = parsed(f"f({text})")
    assert isinstance(node, ast.Call)
    if node.keywords:
        raise CallError(f"{text!r}: a layer takes no keywords")
    return tuple(value(a, text) for a in node.args)


def parsed(text: str) -> ast.expr:
    """The expression, or an error."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise CallError(f"{text!r} cannot be read: {error}") from None


def value(node: ast.expr, text: str) -> Any:
    """A name, a number, a string, or a tuple, list or slice of them."""
    if isinstance(node, ast.Constant) and (
        node.value is None or node.value is ... or isinstance(node.value, bool | int | float | str)
    ):
        return node.value
    if isinstance(node, ast.Name):
        return Ref(node.id)
    if isinstance(node, ast.Tuple):
        return tuple(value(item, text) for item in node.elts)
    if isinstance(node, ast.List):
        return [value(item, text) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        inner = [value(a, text) for a in node.args]
        if node.func.id == "slice" and 1 <= len(inner) <= 3:
            return slice(*inner)
        if node.func.id == "dtype" and inner in ([n] for n in DTYPES):
            return DTYPES[inner[0]]
        if node.func.id == "number" and inner in (["inf"], ["-inf"], ["nan"]):
            return float(inner[0])
    raise CallError(f"{text!r}: {ast.unparse(node)!r} is not understood")


DTYPES = {n: getattr(torch, n) for n in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")}
