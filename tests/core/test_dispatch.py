"""Choices of kernels and the record of what ran belong to one thread or task; blocks may overlap."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from fastsnn_core import ops
from fastsnn_core.ops import dispatch

PRODUCT = dispatch.Operator("product", lambda counts, weight: counts.long() @ weight.long().T)
del dispatch.OPERATORS["product"]  # the table is of real ones
ONES, WEIGHT = torch.ones(2, 4), torch.ones(3, 4, dtype=torch.int8)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """A kernel set that has one operator."""
    table = {"product": lambda counts, weight: torch.zeros(len(counts), len(weight), dtype=torch.int64)}
    monkeypatch.setattr(dispatch, "kernels", lambda rows=[("fake", ("cpu",), table)]: rows)
    PRODUCT._ready.clear()
    yield
    PRODUCT._ready.clear()


def call() -> str:
    PRODUCT("cpu", ONES, WEIGHT)
    return ops.paths()["product"]


def test_threads_do_not_see_each_others_choice_nor_record():
    found = []
    assert call() == "fake"
    with ops.use("naive"):
        thread = threading.Thread(target=lambda: found.extend([ops.paths().get("product"), call()]))
        thread.start()
        thread.join()
        assert ops.paths()["product"] == "fake"  # of this thread, before the block
        assert call() == "naive"
    assert found == [None, "fake"]


def test_tasks_do_not_see_each_others():
    async def task(kernel, steps):
        with ops.use(kernel):
            rows = []
            for _ in range(steps):
                rows.append(call())
                await asyncio.sleep(0)
                rows.append(ops.paths()["product"])
            return rows

    async def both():
        return await asyncio.gather(task("naive", 3), task("fake", 3))

    assert asyncio.run(both()) == [["naive"] * 6, ["fake"] * 6]


def test_blocks_that_overlap_end_on_their_own():
    a, b = ops.use("naive"), ops.use("fake")
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    assert repr(dispatch._forced) == "['fake']"
    assert call() == "fake"
    b.__exit__(None, None, None)
    assert not dispatch._forced.names()


def test_a_substitute_counts_in_its_own_thread_only():
    seen, other = [], []

    def counted(counts, weight):
        seen.append(1)
        return PRODUCT.naive(counts, weight)

    with dispatch.substitute({"product": counted}):
        assert torch.equal(PRODUCT("cpu", ONES, WEIGHT), torch.full((2, 3), 4))
        thread = threading.Thread(target=lambda: other.append(PRODUCT("cpu", ONES, WEIGHT)))
        thread.start()
        thread.join()
    assert len(seen) == 1
    assert not other[0].any()  # the fake kernel's zeros
    PRODUCT("cpu", ONES, WEIGHT)
    assert len(seen) == 1


def test_a_kernel_says_which_way_it_went():
    def choosy(counts, weight):
        dispatch.record_path("product", "fake: dense", "many events")
        return PRODUCT.naive(counts, weight)

    with dispatch.substitute({"product": choosy}):
        assert call() == "fake: dense"
        assert dispatch.reasons()["product"] == "many events"
    assert call() == "fake"
    assert "product" not in dispatch.reasons()


def test_a_warning_comes_once(caplog, monkeypatch):
    """In a loop over tokens the same sentence a thousand times would hide every other."""
    monkeypatch.setattr(dispatch, "OPERATORS", {})
    dispatch._say_once.cache_clear()
    slow, other, plain = (ops.Operator(n, lambda x: x + 1, plain=n == "plain") for n in ("slow", "other", "plain"))
    with caplog.at_level("WARNING", "fastsnn"):
        for _ in range(3):
            for operator in (slow, other, plain):
                assert operator("cpu", 1) == 2
            slow.pick("cpu")  # as a changed list of kernels makes it choose again
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["slow", "other"]
