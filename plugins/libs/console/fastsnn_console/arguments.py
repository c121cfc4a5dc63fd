"""Arguments of verbs: the parser of core, and types that refuse nonsense with the option's name.

args = Parser("generate", "Continue a prompt.")
args.add_argument("--max-tokens", type=number(int, ge=1), default=128)
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from fastsnn_core.arguments import Parser as Parser
from fastsnn_core.arguments import choice as choice
from fastsnn_core.errors import UserError
from fastsnn_core.moved import renamed


def number(
    kind: type[int] | type[float] = float,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Callable[[str], Any]:
    """A type for ``add_argument``: a finite number within bounds."""
    signs = ((ge, "at least"), (gt, "greater than"), (le, "at most"), (lt, "less than"))
    wanted = " and ".join(f"{word} {bound:g}" for bound, word in signs if bound is not None)
    what = "a whole number" if kind is int else "a number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            math.isfinite(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"expected {what}{f' {wanted}' if wanted else ''}, got {text!r}") from None
        good = math.isfinite(value) and (ge is None or value >= ge) and (gt is None or value > gt)
        if not (good and (le is None or value <= le) and (lt is None or value < lt)):
            raise argparse.ArgumentTypeError(f"must be {wanted or 'finite'}, got {text}")
        return value

    return parse


def comma_separated(each: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """A type for ``add_argument``: values with commas between them, at least one."""

    def parse(text: str) -> list[Any]:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise argparse.ArgumentTypeError(f"expected values with commas between them, got {text!r}")
        return [each(word) for word in words]

    return parse


def port(text: str) -> int:
    """A type for ``add_argument``: a TCP port, 0 for any free one."""
    return int(number(int, ge=0, le=65535)(text))


def device(name: str) -> str:
    """A device that torch has here, else a `UserError` that names those it has. Imports torch."""
    import torch

    try:
        found = torch.device(name)
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, ValueError) as error:
        here = ["cpu"]
        here += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        here += ["mps"] if torch.backends.mps.is_available() else []
        why = str(error).strip().splitlines()[0] if str(error).strip() else "not available"
        raise UserError(f"no device {name!r} here ({why}); devices: {', '.join(here)}") from None
    if found.type == "meta":
        raise UserError(f"the device {name!r} holds no numbers; take cpu")
    return name


__getattr__ = renamed(__name__, {"listed": "comma_separated"})
