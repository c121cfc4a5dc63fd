"""A public function says what it refuses and what shapes its tensors have."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(
    tomllib.loads(p.read_text(encoding="utf-8"))["project"]["name"].replace("-", "_")
    for p in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]
)
SAYS = re.compile(r"error|raises|refus|must |rejected|LookupFailure", re.IGNORECASE)
REFUSES = re.compile(r"\braise \w|\b(check|refuse)\w*\(")


def missing(function: Any) -> list[str]:
    """What the docstring of a function leaves out: all of it, its errors, the shapes of its tensors."""
    inner = inspect.unwrap(function)
    said = inspect.getdoc(inner) or ""
    if not said:
        return ["everything"]
    found = ["errors"] if REFUSES.search(inspect.getsource(inner)) and not SAYS.search(said) else []
    return found + (["shapes"] if "Tensor" in str(inspect.signature(inner)) and "[" not in said else [])


def functions(package: str) -> Iterator[tuple[str, Any]]:
    """The public functions of a distribution."""
    try:
        module = importlib.import_module(package)
    except ImportError:  # one with a heavy package of its own that is not here
        return
    for name in getattr(module, "__all__", ()):
        if inspect.isfunction(value := getattr(module, name, None)):
            yield name, value


@pytest.mark.parametrize("package", PACKAGES)
def test_public_functions_say_what_they_refuse_and_their_shapes(package: str) -> None:
    assert {name: gaps for name, f in functions(package) if (gaps := missing(f))} == {}


def test_gaps_are_found() -> None:
    import torch

    def silent(x: torch.Tensor) -> torch.Tensor:
        """Twice."""
        if x.ndim:
            raise ValueError(x)
        return 2 * x

    def nothing() -> None:
        pass

    assert missing(silent) == ["errors", "shapes"]
    assert missing(nothing) == ["everything"]
    silent.__doc__ = "Twice ``x [N]``. Errors: x has dimensions."
    assert missing(silent) == []
