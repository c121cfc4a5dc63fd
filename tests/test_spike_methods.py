"""A SpikeTensor beside its value: each method of torch.Tensor gives the same, or a TypeError that says what to do."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core import SpikeTensor
from fastsnn_core.spike_methods import AUGMENTED, DUNDERS, POINTERS, in_place

# what a random call cannot be compared by: they draw numbers, name an address, an autograd node, or another device
ADDRESSES = {"grad_fn", "dlpack", "untyped_storage", "register_hook", "register_post_accumulate_grad_hook", "backward"}
RANDOM = {"bernoulli", "multinomial", "type_as_random", "rand_like"}
ELSEWHERE = {
    "cuda",
    "xpu",
    "ipu",
    "hpu",
    "mtia",
    "pin_memory",
    "is_pinned",
    "to_mkldnn",
    "record_stream",
    "module_load",
}
UNWRITTEN = {"new", "new_empty", "new_empty_strided"}  # memory of any content
OWN = {"index"}  # coordinates of the event view
NAMES = sorted({n for n in dir(Tensor) if not n.startswith("_")} - RANDOM - ELSEWHERE - UNWRITTEN - ADDRESSES - OWN)

ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    (), (0,), (1,), (-1,), (2.5,), (0, 1), ((0,),), (torch.tensor(2.0),), (torch.tensor([1.0, 0.0, 3.0]),),
    (torch.tensor([0, 1]),), (0, torch.tensor([0, 1])), ((2, 3),), (-1, 1), (0.0, 1.0), (torch.float64,), (0.5,),
)  # fmt: skip


@st.composite
def spikes(draw: Any) -> SpikeTensor:
    """Counts of any type and view, with one scale, one per row, or one per channel."""
    shape = draw(st.sampled_from([(), (3,), (2, 3), (2, 2, 3), (0, 3), (1, 1)]))
    whole = st.integers(-300, 300)
    numbers = draw(st.lists(whole, min_size=math.prod(shape), max_size=math.prod(shape)))
    kind = draw(st.sampled_from([torch.float32, torch.int32, torch.int16, torch.int64, torch.float64]))
    counts = torch.tensor(numbers, dtype=torch.int64).reshape(shape).to(kind)
    scales = [torch.tensor(0.25), torch.tensor(-1.5, dtype=torch.float64)]
    if len(shape) > 1:
        scales += [torch.arange(1.0, shape[-2] + 1)[:, None], torch.arange(1.0, shape[-1] + 1)]
    made = SpikeTensor(counts, draw(st.sampled_from(scales)))
    view = draw(st.sampled_from(["count", "event", "dense"])) if shape else "count"
    if view == "event":
        return made.event()
    return made.dense("bitwise") if view == "dense" else made


def outcome(call: Any) -> tuple[str, Any]:
    """``("gives", result)``, or ``("raises", error)``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "gives", call()
    except Exception as error:
        return "raises", error


def same(a: Any, b: Any) -> bool:
    """Equal types, shapes and bits; a SpikeTensor counts as its value, NaN as NaN."""
    a, b = (x.value() if isinstance(x, SpikeTensor) else x for x in (a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape):
            return False
        if a.layout != torch.strided:
            return a.layout == b.layout and same(a.to_dense(), b.to_dense())
        return (
            bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)) if a.dtype != torch.bool else torch.equal(a, b)
        )
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if callable(a) and callable(b):
        return True
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) or type(a) is type(b)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(s=spikes(), which=st.integers(0, len(ARGUMENTS) - 1))
def test_every_method_gives_what_the_value_gives_or_a_type_error(name: str, s: SpikeTensor, which: int) -> None:
    if in_place(name) or name in POINTERS:
        with pytest.raises(TypeError, match=r"value\(\)|x \+ y|in place"):
            getattr(s, name)(*ARGUMENTS[which])
        return
    value = s.value()
    if not callable(getattr(Tensor, name)):
        how, found = outcome(lambda: getattr(s, name))
        wanted_how, wanted = outcome(lambda: getattr(value, name))
        assert how == wanted_how, f"{name}: {found!r} beside {wanted!r}"
        assert how == "raises" or same(found, wanted), name
        return
    for arguments in ((), ARGUMENTS[which]):
        how, found = outcome(lambda args=arguments: getattr(s, name)(*args))
        wanted_how, wanted = outcome(lambda args=arguments: getattr(value, name)(*args))
        assert how == wanted_how, f"{name}{arguments}: {found!r} beside {wanted!r}"
        if how == "gives":
            assert same(found, wanted), f"{name}{arguments}: {found} beside {wanted}"


@settings(max_examples=150, deadline=None)
@given(s=spikes(), name=st.sampled_from(DUNDERS), other=st.sampled_from([0, 2, -1.5, True]), spiking=st.booleans())
def test_operators_are_those_of_the_value(s: SpikeTensor, name: str, other: Any, spiking: bool) -> None:
    value = s.value()
    binary = name.strip("_") not in ["neg", "pos", "abs", "invert", "bool", "int", "float", "complex", "index", "array"]
    mine, theirs = ((s, value) if spiking else (other, other)) if binary else (None, None)
    how, found = outcome(lambda: getattr(s, name)(*((mine,) if binary else ())))
    wanted_how, wanted = outcome(lambda: getattr(value, name)(*((theirs,) if binary else ())))
    assert how == wanted_how, f"{name}: {found!r} beside {wanted!r}"
    assert how == "raises" or same(found, wanted)


FUNCTIONS: dict[str, Any] = {
    "cat": lambda s: torch.cat([s, s]),
    "stack": lambda s: torch.stack([s, s]),
    "where": lambda s: torch.where(s > 0, s, 0),
    "equal": lambda s: torch.equal(s, s),
    "allclose": lambda s: torch.allclose(s, s),
    "relu": lambda s: F.relu(s, inplace=False),
    "softmax": lambda s: torch.softmax(s.float(), -1),
    "einsum": lambda s: torch.einsum("...i,...i->...", s.double(), s.double()),
    "unbind": torch.unbind,
    "clone": torch.clone,
    "add": lambda s: torch.add(input=s, other=1),
    "tensor + s": lambda s: torch.ones(3) + s,
    "numpy": np.asarray,
    "list": list,
    "in": lambda s: 0 in s,
    "matmul": lambda s: torch.ones(2, s.shape[-1], dtype=s.dtype) @ s.mT if s.ndim > 1 else 0,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=20, deadline=None)
@given(s=spikes())
def test_functions_see_the_value(name: str, s: SpikeTensor) -> None:
    how, found = outcome(lambda: FUNCTIONS[name](s))
    wanted_how, wanted = outcome(lambda: FUNCTIONS[name](s.value()))
    assert how == wanted_how, f"{found!r} beside {wanted!r}"
    assert how == "raises" or same(found, wanted)


def test_comparison_is_elementwise_and_spikes_can_still_be_keys():
    s = SpikeTensor(torch.tensor([0, 2]), 0.5)
    assert (s == 0).tolist() == [True, False]
    assert (s != s).tolist() == [False, False]
    assert (s >= 1).tolist() == [False, True]
    assert {s: 1}[s] == 1


@pytest.mark.parametrize("name", [*AUGMENTED, "__setitem__"])
def test_augmented_assignment_says_what_to_write(name):
    s = SpikeTensor(torch.tensor([0, 2]))
    with pytest.raises(TypeError, match="in place"):
        getattr(s, name)(0, 1)
    with pytest.raises(TypeError, match="in place"):
        torch.relu_(s)


@settings(max_examples=30, deadline=None)
@given(s=spikes())
def test_copies_keep_view_and_value(s: SpikeTensor) -> None:
    for other in (
        copy.copy(s),
        copy.deepcopy(s),
        pickle.loads(pickle.dumps(s)),
        s.clone(),
        s.cpu(),
        s.detach(),
        s.to("cpu"),
    ):
        assert isinstance(other, SpikeTensor)
        assert other.form == s.form
        assert same(other, s)


@settings(max_examples=40, deadline=None)
@given(s=spikes(), kind=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_a_change_of_type_leaves_the_counts(s: SpikeTensor, kind: torch.dtype) -> None:
    other = s.to(kind)
    assert other.dtype == kind
    assert torch.equal(other.counts, s.counts)
    assert same(other.value(), s.value().to(kind))


@settings(max_examples=40, deadline=None)
@given(s=spikes(), kind=st.sampled_from([torch.float16, torch.bfloat16]), bias=st.booleans())
def test_half_precision_layers_count_in_float32(s: SpikeTensor, kind: torch.dtype, bias: bool) -> None:
    if not s.ndim or s.shape[-1] != 3:
        return
    weight, b = torch.tensor([[1.0, 0.5, -0.25], [2.0, 0.0, 1.0]]), torch.tensor([0.5, -1.0]) if bias else None
    wanted = F.linear(s.value().double(), weight.double(), None if b is None else b.double())
    found = F.linear(s, weight.to(kind), None if b is None else b.to(kind))
    torch.testing.assert_close(found, wanted.to(kind), rtol=0, atol=0)  # exact sums: rounded once


def test_lowest_counts_do_not_wrap():
    lowest = SpikeTensor(torch.tensor([[-128, 3]], dtype=torch.int8))
    assert (lowest.largest(), lowest.sparsity().mean_count, lowest.sparsity().steps) == (128, 65.5, 8)
    for kind, size in ((torch.int32, 31), (torch.int64, 40)):
        s = SpikeTensor(torch.tensor([-(2**size), 1], dtype=kind))
        assert s.largest() == 2**size
        assert torch.equal(s.event().counts.long(), s.counts.long())
    assert SpikeTensor(torch.tensor([-(2**31)], dtype=torch.int32)).pack().counts.tolist() == [-(2**31)]
    with pytest.raises(ValueError, match="-2147483649 does not fit 32 bits"):
        SpikeTensor(torch.tensor([-(2**31) - 1])).pack()
    wide = SpikeTensor.from_train(torch.ones(2, 3, dtype=torch.int8), torch.tensor([1 << 40, 1]))
    assert wide.counts.tolist() == [2**40 + 1] * 3
    twice = SpikeTensor.from_events(torch.tensor([0, 0]), torch.tensor([100, 100], dtype=torch.int8), (2,))
    assert twice.counts.tolist() == [200, 0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SpikeTensor([1, 2]), "must be a tensor"),
        (lambda: SpikeTensor(torch.ones(2, 3), torch.ones(4)), "does not broadcast"),
        (lambda: SpikeTensor.from_events(torch.tensor([9]), torch.tensor([1]), (2, 2)), "outside 0 … 3"),
        (lambda: SpikeTensor.from_events(torch.tensor([0.5]), torch.tensor([1]), (2, 2)), "integers"),
        (lambda: SpikeTensor(torch.tensor([0.5])).event(), "whole"),
        (lambda: SpikeTensor(torch.tensor([float("nan")])).largest(), "finite"),
        (lambda: F.linear(SpikeTensor(torch.ones(2, 3)), torch.ones(2, 4)), "channels"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


def test_it_shows_rate_and_values():
    s = SpikeTensor(torch.tensor([[0, 2, -3]]), 0.5)
    shown = repr(s)
    for part in ("shape [1, 3]", "silent 33.33%", "range -3 … 2", "scale 0.5", "[0, 2, -3]"):
        assert part in shown
    page = s._repr_html_()
    assert page.count("<td title=") == 3
    assert "silent" in page
    assert "meta" not in repr(SpikeTensor(torch.empty(2, device="meta")))


def test_rearranged_spikes_stay_spikes():
    s = SpikeTensor(torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[[1.0], [2.0], [3.0]]]))
    last = s.rearrange(lambda t: t[:, -1:])
    assert isinstance(last, SpikeTensor)
    assert last.scale.shape[-1] == 1
    assert torch.equal(last.value(), s.value()[:, -1:])
