"""Threads that wait for each other beside busy neighbours are noticed, once, with what helps."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from fastsnn_console import contention


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(contention, "_last", None)
    monkeypatch.setattr(contention, "_bad", 0)
    monkeypatch.setattr(contention, "_said", False)


@pytest.mark.parametrize(
    ("threads", "cores", "others", "says"),
    [
        (2, 2, 0.1, ""),
        (1, 2, 1.9, ""),
        (2, 4, 1.9, ""),
        (2, 2, 0.7, "OMP_NUM_THREADS=1"),
        (2, 2, 1.0, "other programs use 1.0 of 2 cores while FastSNN runs on 2 threads"),
        (8, 8, 4.0, "OMP_NUM_THREADS=4"),
        (8, 1.0, 0.0, "this process may use 1 core while FastSNN runs on 8 threads"),
    ],
)
def test_the_verdict(threads, cores, others, says):
    found = contention.verdict(threads, cores, others)
    assert bool(found) == bool(says)
    assert says in found


def drive(monkeypatch, others: float, ticks: int) -> None:
    """`ticks` steps of a quarter of a second, our two threads busy, `others` cores busy besides."""
    clock = {"now": 100.0}
    monkeypatch.setattr(contention.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(contention.time, "process_time", lambda: 1.3 * clock["now"])
    monkeypatch.setattr(contention, "busy_seconds", lambda: (1.3 + others) * clock["now"])
    monkeypatch.setattr(contention, "threads", lambda: 2)
    monkeypatch.setattr(contention, "cores", lambda: 2.0)
    for _ in range(ticks):
        contention.tick()
        clock["now"] += 0.25


def test_it_is_said_once_and_only_when_it_lasts(fresh, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "fastsnn"):
        drive(monkeypatch, 0.7, 16)
        assert not caplog.records, "one look is not enough"
        drive(monkeypatch, 0.7, 60)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "OMP_NUM_THREADS=1" in caplog.text


def test_an_idle_machine_is_left_alone(fresh, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "fastsnn"):
        drive(monkeypatch, 0.1, 100)
    assert not caplog.records


def test_a_system_that_does_not_say_is_asked_once(fresh, monkeypatch):
    asked = []
    monkeypatch.setattr(contention, "busy_seconds", lambda: asked.append(1))
    for _ in range(3):
        contention.tick()
    assert asked == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_busy_neighbours_are_seen():
    """Real ones: as many as there are cores."""
    code = "while True: pass"
    import os
    import time

    neighbours = [subprocess.Popen([sys.executable, "-c", code]) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.5)
        own, busy, wall = time.process_time(), contention.busy_seconds(), time.monotonic()
        time.sleep(1.5)
        others = (contention.busy_seconds() - busy - (time.process_time() - own)) / (time.monotonic() - wall)
    finally:
        for each in neighbours:
            each.kill()
            each.wait()
    assert others > 0.6 * len(neighbours)
    assert contention.verdict(2, len(neighbours), others) or len(neighbours) > 2


def test_every_bar_looks_out_for_neighbours(monkeypatch, fresh):
    """Whatever shows its progress notices the collapse: converting and tuning, too."""
    from fastsnn_console.progress import Progress

    looks = []
    monkeypatch.setattr(contention, "tick", lambda: looks.append(1))
    monkeypatch.setitem(sys.modules, "torch", None)
    for quiet in (False, True):
        with Progress("x", 3, quiet=quiet) as bar:
            bar.step()
            bar.step()
    assert len(looks) == 2
