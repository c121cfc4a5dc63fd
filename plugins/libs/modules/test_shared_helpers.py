"""Functions that are imported late, and what scopes share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastsnn_core import SpikeTensor
from fastsnn_modules.operands import imported_later, kernel_later
from fastsnn_modules.site_views import bitwise_spikes, sites_to_show


def test_a_module_is_imported_at_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arrives_late.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    call = imported_later("arrives_late.double")
    assert "arrives_late" not in sys.modules
    assert call(4) == 8


def test_a_kernel_has_a_way_without_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def guarded(x): return ('checked', x)\ndef bare(x): return ('bare', x)\nguarded.unchecked = bare\n"
    (tmp_path / "kernel_late.py").write_text(text + "def plain(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    kernel = kernel_later("kernel_late.guarded")
    assert (kernel(1), kernel.unchecked(1), kernel.unchecked(2)) == (("checked", 1), ("bare", 1), ("bare", 2))
    assert kernel_later("kernel_late.plain").unchecked(3) == 3


def test_sites_are_chosen_by_pattern_or_evenly() -> None:
    names = [f"layers.{i}" for i in range(10)]
    assert sites_to_show(names, ("*.[23]", "*.9"), 1) == ["layers.2", "layers.3", "layers.9"]
    assert sites_to_show(names, (), 4) == ["layers.0", "layers.3", "layers.6", "layers.9"]
    assert sites_to_show(names, (), 20) == names


def test_spikes_of_a_count_are_its_set_bits() -> None:
    counts = torch.tensor([[0, 1, -2, 3, 7, -8]], dtype=torch.int32)
    assert bitwise_spikes(SpikeTensor(counts, torch.ones(1))).tolist() == [[0, 1, 1, 2, 3, 1]]
