"""A processor that is named instead of asked: only what is listed counts."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")
from llvmlite import binding

from fastsnn_kernel_numba import machine


def test_a_named_processor_has_what_is_listed(monkeypatch):
    monkeypatch.setattr(machine.config, "CPU_NAME", "haswell")
    monkeypatch.setattr(machine.config, "CPU_FEATURES", "-avx2,+f16c, +avx")
    assert [machine.machine_has(name) for name in ("avx2", "f16c", "avx", "fma")] == [False, True, True, False]
    monkeypatch.setattr(machine.config, "CPU_FEATURES", None)
    assert not machine.machine_has("avx")
    monkeypatch.setattr(machine.config, "CPU_NAME", None)
    asked = binding.get_host_cpu_features()
    assert [machine.machine_has(name) for name in asked] == list(map(bool, asked.values()))
