"""What an operator asks of its operands, checked before a kernel sees an address, and before the naive twin.

    LIF = Operands("lif_scan", "x [B,T,D] float", "v [B,D] as x", "keep [B,T] bool or empty", "theta [] as x")
    LIF(x, v, keep, theta)                  -> {"B": 8, "T": 5, "D": 4}, or an `OperandError` that names both operands

A row says one operand: its name, its shape in letters (a letter has one size throughout; a number is that size; ``N|1``
allows 1 besides; ``…`` any dimensions in front; ``[*]`` any shape), and its type: one of `KINDS`, or ``as NAME``.
``or empty`` lets an operand without numbers stand for "none". All operands are on the first one's device and strided
(neither sparse nor quantised nor lazily conjugated). Strides are free: kernels make contiguous what they need so.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_core.errors import shape_text as shown
from fastsnn_core.moved import renamed
from fastsnn_core.site import FULL, HALF

INTEGER = (torch.int8, torch.int16, torch.int32, torch.int64)
KINDS: dict[str, tuple[torch.dtype, ...]] = {
    "float": (*FULL, *HALF),
    "float32": (torch.float32,),
    "full": FULL,
    "integer": (*INTEGER, torch.uint8),
    "index": (torch.int32, torch.int64),
    "int8": (torch.int8,),
    "uint8": (torch.uint8,),
    "number": (*FULL, *HALF, *INTEGER, torch.uint8),
    "bool": (torch.bool,),
}
ROW = re.compile(r"(\w+) \[([^\]]*)\] (as \w+|\w+)( or empty)?")


class OperandError(FastSNNError):
    """Operands that do not fit each other, or a number outside its range; the message names both."""


class OperandTypeError(OperandError, ArgumentError):
    """An operand of a wrong type: no tensor, another dtype, layout or device."""


class Operands:
    """The operands of an operator; see the module."""

    def __init__(self, operator: str, *rows: str) -> None:
        self.operator, self.rows = operator, []
        names: list[str] = []
        for row in rows:
            found = ROW.fullmatch(row)
            if found is None:
                raise ValueError(f"{operator}: {row!r} is no row of operands")
            name, letters, kind, empty = found.groups()
            like = names.index(kind[3:]) if kind.startswith("as ") else None
            self.rows.append((name, letters.split(",") if letters else [], like, kind, bool(empty)))
            names.append(name)
        self.names = names
        usual = [(letters, like, KINDS.get(kind, ())) for _, letters, like, kind, empty in self.rows if not empty]
        letters_only = all(letter.isalpha() for row, _, _ in usual for letter in row)
        self.usual = usual if letters_only and len(usual) == len(self.rows) else []

    def __call__(self, *tensors: Any) -> dict[str, int]:
        """The size of every letter; raises `OperandError`."""
        found = self.quickly(tensors)
        return self.some(enumerate(tensors)) if found is None else found

    def quickly(self, tensors: tuple[Any, ...]) -> dict[str, int] | None:
        """The same, a few microseconds for operands of plain letters that fit; None where `some` must look."""
        if not self.usual or len(tensors) != len(self.usual):
            return None
        sizes: dict[str, int] = {}
        device = None
        for (letters, like, kinds), t in zip(self.usual, tensors):
            if type(t) is not Tensor or t.layout is not torch.strided or t.is_neg():
                return None
            if t.dtype not in (kinds if like is None else (tensors[like].dtype,)):
                return None
            shape = t.shape
            if len(shape) != len(letters) or t.device != (device or t.device):
                return None
            device = t.device
            for letter, n in zip(letters, shape):
                if sizes.setdefault(letter, n) != n:
                    return None
        return sizes

    def some(self, given: Iterable[tuple[int, Any]]) -> dict[str, int]:
        """The same where operands may be left out: ``(place, tensor)`` of those given, the first among them."""
        sizes: dict[str, int] = {}
        tensors = dict(given)
        device = getattr(tensors[0], "device", None)
        for at, t in tensors.items():
            name, letters, like, kind, empty = self.rows[at]
            if type(t) is not Tensor and not isinstance(t, Tensor):
                raise OperandTypeError(f"{self.operator}: {name} must be a tensor, got {type(t).__name__}")
            if t.layout is not torch.strided or t.is_quantized or t.is_conj() or t.is_neg():
                raise OperandTypeError(f"{self.operator}: {name} must be an ordinary (strided) tensor, got {t.layout}")
            wanted = KINDS[kind] if like is None else (tensors[like].dtype,)
            if t.dtype not in wanted:
                allowed = ", ".join(str(w).removeprefix("torch.") for w in wanted)
                raise OperandTypeError(f"{self.operator}: {name} must be {allowed}; got {shown(t)}")
            if t.device != device:
                raise OperandTypeError(
                    f"{self.operator}: {name} is on {t.device} and {self.names[0]} on {device}; move one of them"
                )
            if empty and t.ndim and t.shape[0] == 0:
                continue
            self.sizes(name, letters, t, sizes, tensors)
        return sizes

    def sizes(self, name: str, letters: list[str], t: Tensor, sizes: dict[str, int], tensors: Any) -> None:
        """Bind or compare the letters of one operand."""
        shape = t.shape
        if letters and letters[0] == "*":
            return
        if letters and letters[0] == "…":
            letters = letters[1:]
            shape = shape[max(0, len(shape) - len(letters)) :]
        if len(shape) != len(letters):
            raise OperandError(f"{self.operator}: {name} must be {self.form(letters)}, got {shown(t)}")
        for letter, n in zip(letters, shape):
            if letter.endswith("|1"):
                if n == 1:
                    continue
                letter = letter[:-2]
            if letter.isdigit():
                if n != int(letter):
                    raise OperandError(f"{self.operator}: {name} must be {self.form(letters)}, got {shown(t)}")
            elif sizes.setdefault(letter, n) != n:
                raise OperandError(
                    f"{self.operator}: {name} is {list(t.shape)}, but {letter} = {sizes[letter]}: "
                    + self.other(letter, tensors, name)
                    + f"; {name} must be {self.form(letters)}"
                )

    @staticmethod
    def form(letters: list[str]) -> str:
        """``[B, D]``."""
        return f"[{', '.join(letters)}]"

    def other(self, letter: str, tensors: Any, name: str) -> str:
        """The operand that said what size `letter` has."""
        for at, t in tensors.items():
            first, letters = self.rows[at][:2]
            if first != name and letter in letters:
                return f"{first} {self.form(letters)} is {list(t.shape)}"
        return f"of {name} itself"


def tensors_inside(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """``(name, tensor)`` of every tensor in an operand: in the fields of forms and in tuples, too."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from tensors_inside(part, f"{name}[{i}]")
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from tensors_inside(getattr(value, field.name), f"{name}.{field.name}")


def with_every_tensor(operator: str, check: Callable[..., Any]) -> Callable[..., Any]:
    """`check`, after a look at every tensor that is given, those inside forms as well: ordinary ones of one device.

    For operators whose operands are forms, of which a row of `Operands` sees one part at a time.
    """
    names = list(inspect.signature(check).parameters)

    def checked(*operands: Any) -> Any:
        first: tuple[str, Tensor] | None = None
        for name, t in tensors_inside(operands, ""):
            at, _, rest = name[1:].partition("]")
            name = names[int(at)] + rest
            if t.layout is not torch.strided or t.is_quantized or t.is_complex() or t.is_neg():
                raise OperandTypeError(f"{operator}: {name} must be an ordinary (strided, real) tensor, got {shown(t)}")
            first = first or (name, t)
            if t.device != first[1].device:
                raise OperandTypeError(
                    f"{operator}: {name} is on {t.device} and {first[0]} on {first[1].device}; move one of them"
                )
        return check(*operands)

    return checked


def check_room(operator: str, what: str, *sizes: int, bytes_each: int = 8) -> None:
    """Refuse a result that this machine's memory cannot hold, before anything asks for it.

    `sizes` are its dimensions; tensors that are given have proved their own, numbers have not.
    """
    wanted, room = math.prod(sizes) * bytes_each, bytes_of_memory()
    if wanted > room:
        raise OperandError(
            f"{operator}: {what} of {' × '.join(map(str, sizes))} numbers are {wanted / 1e9:,.0f} GB; "
            f"this machine has {room / 1e9:,.0f}"
        )


@cache
def bytes_of_memory() -> int:
    """Bytes of this machine's memory; 2^48 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**48


def check_finite_numbers(operator: str, **numbers: Any) -> None:
    """Refuse Python numbers that are not numbers, or NaN."""
    for name, n in numbers.items():
        if isinstance(n, bool) or not isinstance(n, int | float):
            raise OperandTypeError(f"{operator}: {name} must be a number, got {type(n).__name__}")
        if math.isnan(n):
            raise OperandError(f"{operator}: {name} is NaN")


def check_choice(operator: str, name: str, value: Any, possible: Any) -> None:
    """Refuse what is not one of the possible values."""
    if not isinstance(value, str | int) or value not in possible:
        raise OperandError(f"{operator}: {name} = {value!r}; possible: {', '.join(map(str, possible))}")


def guarded(operator: str) -> Any:
    """For kernels: the function, checked by its operator when it is called by hand.

    The operator itself has checked already, and takes ``function.unchecked``.
    """

    def wrap(function: Any) -> Any:
        @wraps(function)
        def checked(*args: Any) -> Any:
            from fastsnn_core.ops.dispatch import OPERATORS

            known = OPERATORS[operator]
            if known.check is not None:
                known.check(*args)
            return function(*args)

        checked.unchecked = function  # type: ignore[attr-defined]
        return checked

    return wrap


def imported_later(path: str) -> Callable[..., Any]:
    """The function at ``package.module.function``, whose module is imported when it is first called."""
    module, _, name = path.rpartition(".")

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


def kernel_later(path: str) -> Callable[..., Any]:
    """`imported_later` for an operator's kernel: ``unchecked`` is the one that takes operands as checked already."""
    module, _, name = path.rpartition(".")
    found: list[Callable[..., Any]] = []

    def unchecked(*args: Any) -> Any:
        if not found:
            function = getattr(importlib.import_module(module), name)
            found.append(getattr(function, "unchecked", function))
        return found[0](*args)

    call = imported_later(path)
    call.unchecked = unchecked  # type: ignore[attr-defined]  # dispatch looks for it on the function
    return call


__getattr__ = renamed(__name__, {"chosen": "check_choice", "finite": "check_finite_numbers"})
