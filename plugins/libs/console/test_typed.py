"""Arguments are checked against annotations: what fits is taken as it is, what does not is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsnn_console.typed import check_fields, typed
from fastsnn_core.errors import ArgumentError

if TYPE_CHECKING:
    from nowhere import Unknown


@typed
def whole(n: int) -> Any:
    return n


@typed
def real(x: float | None = None) -> Any:
    return x


@typed
def many(a: Sequence[str], b: tuple[int, ...] = (), c: Mapping[str, Any] | None = None, *rest: int, **more: Any) -> Any:
    return a, b, c, rest, more


@typed
def other(path: str | Path, how: Literal["a", "b"] = "a", flag: bool = False, odd: Unknown = None) -> Any:
    return path


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
)  # fmt: skip


@given(anything)
def test_numbers(value):
    is_whole = type(value) is int and abs(value) < 2**63
    for call, right in (
        (whole, is_whole),
        (real, value is None or is_whole or (type(value) is float and not math.isnan(value))),
    ):
        if right:
            assert call(value) is value
        else:
            with pytest.raises(ArgumentError, match=rf"{call.__name__}\(.=\) takes a (whole )?number"):
                call(value)


def test_numbers_of_numpy_paths_and_lists_are_taken():
    assert whole(np.int64(3)) == 3
    assert real(np.float32(0.5)) == 0.5
    assert other(Path("x")) == Path("x")
    assert other("x", "b", np.bool_(True), object()) == "x"
    assert many(["x"], [1, 2], {}, 5, z=1) == (["x"], [1, 2], {}, (5,), {"z": 1})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: many("x"), r"many\(a=\) takes a list \(each a text\), got str 'x'"),
        (lambda: many(["x", 3]), r"many\(a=\) takes a list \(each a text\), got list"),
        (lambda: many([], (1, "x")), r"many\(b=\) takes a list \(each a whole number\)"),
        (lambda: many([], (), [1]), r"many\(c=\) takes a Mapping or None, got list \[1\]"),
        (lambda: other(3), r"other\(path=\) takes a text or a path, got int 3"),
        (lambda: other("a\0"), "is no path: it holds a NUL character"),
        (lambda: other("a", "c"), r"other\(how=\) takes 'a' or 'b', got str 'c'"),
        (lambda: other("a", flag=1), r"other\(flag=\) takes True or False, got int 1"),
        (lambda: other("a", flga=1), "did you mean 'flag'"),
        (lambda: other(), "missing a required argument: 'path'"),
        (lambda: whole(10**400), "beyond 64 bits"),
        (lambda: whole(np.ones(3)), r"got a tensor \[3\] float64"),
    ],
)
def test_what_does_not_fit_is_named(call, says):
    with pytest.raises(ArgumentError, match=says):
        call()


@attrs.frozen
class Options:
    steps: int = 1
    name: str | None = None


def test_fields_of_options_are_checked_under_the_function_s_name():
    check_fields("convert", Options, {"steps": 2, "name": None})
    with pytest.raises(ArgumentError, match=r"convert\(steps=\) takes a whole number, got str '2'"):
        check_fields("convert", Options, {"steps": "2"})
    with pytest.raises(ArgumentError, match="did you mean 'steps'"):
        check_fields("convert", Options, {"step": 2})
