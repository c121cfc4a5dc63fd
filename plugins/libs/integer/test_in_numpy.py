"""The exact operators in NumPy: the bits of the definitions, whatever the numbers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from fastsnn_core import ops
from fastsnn_integer import answer_meanwhile, deterministic, in_numpy, samples

ODD = torch.tensor(
    [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3e38, -3e38, 88.0, 87.99, -87.0, -86.99, 1e-30, -1e-30]
)


@pytest.fixture(autouse=True)
def naive():
    with ops.use("naive"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def assert_same_bits(found, wanted):
    assert found.dtype == wanted.dtype == torch.float32
    assert found.shape == wanted.shape
    numbers = ~wanted.isnan()
    assert torch.equal(found.isnan(), ~numbers)
    assert torch.equal(found[numbers].view(torch.int32), wanted[numbers].view(torch.int32))


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", list(deterministic.FORMS))
def test_functions(form):
    scales = torch.logspace(-8, 8, 4099, 2.0)
    for x in (ODD, -ODD, draw(4099) * scales, draw(6, 5).T, draw(0), torch.tensor(0.5), draw(2, 1, 3)):
        assert_same_bits(in_numpy.unary_in_numpy(x, form), deterministic.unary_naive(x, form))


@pytest.mark.parametrize("form", list(deterministic.SUMS))
def test_sums_of_every_width(form):
    for width in (*range(35), 63, 64, 65, 576, 1025):
        x = draw(4, width)
        x[0], x[1] = -0.0, x[1] * 1e30
        x[2, width // 2 :] = -0.0
        assert_same_bits(in_numpy.row_sum_in_numpy(x, form), deterministic.row_sum_naive(x, form))
    x = draw(len(ODD), 9)
    x[:, 4] = ODD
    for rows in (x, x.T, x[::2, 1:], x[:0]):
        assert_same_bits(in_numpy.row_sum_in_numpy(rows, form), deterministic.row_sum_naive(rows, form))


@pytest.mark.parametrize("weighted", [False, True])
def test_norms(weighted):
    x = draw(len(ODD), 9)
    x[:, 4] = ODD
    for rows in (x, x * 1e-20, draw(2, 577), draw(1, 576), draw(0, 5), draw(3, 0)):
        weight = draw(rows.shape[1]) if weighted else draw(0)
        assert_same_bits(in_numpy.norm_in_numpy(rows, weight, 1e-5), deterministic.norm_naive(rows, weight, 1e-5))


@pytest.mark.parametrize("room", [in_numpy.ROOM, 40])
def test_attention(monkeypatch, room):
    monkeypatch.setattr(in_numpy, "ROOM", room)
    for sample in samples.attend():
        assert_same_bits(in_numpy.attend_in_numpy(*sample), deterministic.attend_naive(*sample))
    for keys in (0, 1, 2, 130):
        q, k, v, allowed = draw(1, 1, 4, 24), draw(1, keys, 2, 24), draw(1, keys, 2, 8), torch.ones(1, 1, keys) > 0
        assert_same_bits(in_numpy.attend_in_numpy(q, k, v, allowed), deterministic.attend_naive(q, k, v, allowed))


def test_attention_leaves_out_what_has_no_weight():
    """Keys that may not be seen hold anything, and zeros keep their signs out of the sums."""
    q, k, v = (draw(2, 3, n, 4) for n in (4, 2, 2))
    allowed = torch.tensor([[[True, False, True], [False, False, True], [False, False, False]]]).expand(2, 3, 3)
    v[:, 1], v[:, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan]), -0.0
    assert_same_bits(in_numpy.attend_in_numpy(q, k, v, allowed), deterministic.attend_naive(q, k, v, allowed))


def test_they_answer_while_kernels_compile():
    taken = {name: answer_meanwhile.QUICKER[f"exact_{name}"] for name in ("attend", "norm", "row_sum", "unary")}
    assert taken == {name: getattr(in_numpy, f"{name}_in_numpy") for name in taken}
