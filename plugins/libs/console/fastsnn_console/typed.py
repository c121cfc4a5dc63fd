"""Arguments of public functions checked against their annotations, before the work: `typed`.

@typed
def scope(model: nn.Module, *, text: str | None = None, limit: int = 256): ...

scope(model, limit="x")  # ArgumentError: scope(limit=) takes a whole number, got 'x'

Numbers, texts, paths, lists, mappings and classes are told apart; what an annotation says beyond that is the function's
own business, and so are modules, since it knows how to get one. Whole numbers fit into 64 bits, numbers are not NaN,
paths hold no NUL.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

from fastsnn_core.errors import ArgumentError, did_you_mean, shape_text

P = ParamSpec("P")
R = TypeVar("R")
LARGEST = 2**63 - 1
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    type(None): "None",
}
MANY = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, list, tuple)


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose arguments must be what its annotations say: an `ArgumentError` names the first that is not."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_arguments(function.__name__, function, signature, args, kwargs)
        return function(*args, **kwargs)

    return checked


def check_fields(name: str, kind: type, options: dict[str, Any]) -> None:
    """Are `options` what the attrs class `kind` takes? They were given to the function `name`."""
    check_arguments(name, kind, inspect.signature(kind), (), options)


def check_arguments(name: str, function: Any, signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise `ArgumentError` for a name that `function` does not have, a missing argument, or one of another type."""
    if name == "__init__":
        name = function.__qualname__.split(".")[-2]
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        known = [p for p in signature.parameters if p != "self"]
        unknown = [k for k in kwargs if k not in known]
        help = did_you_mean(unknown[0], known, "arguments") if unknown else f"arguments: {', '.join(known)}"
        raise ArgumentError(f"{name}(): {error}; {help}") from None
    hints = types_of(function)
    for key, value in given.items():
        hint = hints.get(key, Any)
        if signature.parameters[key].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            if not fits(value, hint):
                raise ArgumentError(f"{name}({key}=) takes {wanted(hint)}, got {brief(value)}")
            if isinstance(value, str) and "\0" in value and Path in typing.get_args(hint):
                raise ArgumentError(f"{name}({key}=): {value!r} is no path: it holds a NUL character")


@functools.cache
def types_of(function: Any) -> dict[str, Any]:
    """The annotations of a function or an attrs class as types; those only a type checker can see are left out."""
    found = {}
    module = sys.modules[function.__module__]
    late = getattr(module, "LATE", {})  # what it names only in annotations, so that importing it stays cheap
    names = vars(module) | {name: importlib.import_module(path) for name, path in late.items()}
    for key, hint in inspect.get_annotations(function).items():
        try:
            found[key] = eval(hint, names) if isinstance(hint, str) else hint
        except (NameError, AttributeError, TypeError):
            continue
    return found


def fits(value: Any, hint: Any) -> bool:
    """Is `value` what `hint` says?"""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, str | int) and value in inner
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy's, too
    if hint in (int, float):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) <= LARGEST
        return whole or (hint is float and isinstance(value, numbers.Real) and not whole_like(value) and value == value)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if (origin or hint) in MANY:
        kinds = (list, tuple) if origin is tuple and Ellipsis in inner else origin or hint
        if isinstance(value, str | bytes | collections.abc.Mapping) or not isinstance(value, kinds):
            return False
        each = [a for a in inner if a is not Ellipsis]
        uniform = len(each) == 1 and isinstance(value, collections.abc.Sequence)
        return not uniform or all(fits(item, each[0]) for item in value)
    kind = origin or hint
    if getattr(kind, "__module__", "").startswith("torch.nn"):
        return True
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked
        return True


def whole_like(value: Any) -> bool:
    """A bool, or a whole number (which is judged as one)."""
    return isinstance(value, numbers.Integral)


def wanted(hint: Any) -> str:
    """``a text, a path or None``: an annotation in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(wanted(each) for each in inner))
        return " or ".join(", ".join(words).rsplit(", ", 1))
    if origin is Literal:
        return " or ".join(repr(each) for each in inner)
    if hint in WORDS:
        return WORDS[hint]
    if (origin or hint) in MANY:
        return "a list" + (f" (each {wanted(inner[0])})" if inner and inner[0] is not Any else "")
    if isinstance(origin or hint, type):
        name = (origin or hint).__name__
        return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
    return str(hint)


def brief(value: Any) -> str:
    """A value in an error: a tensor by its shape, anything else by its type and the first of its text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a tensor {shape_text(value)}"
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) > LARGEST:
        return f"{str(int(value))[:12]}… (beyond 64 bits)"
    text = repr(value) if isinstance(value, str | bytes | numbers.Number | list | tuple | dict) else ""
    text = f"{text[:60]}…" if len(text) > 60 else text
    return "None" if value is None else f"{type(value).__name__} {text}".strip()
