"""State trees: map, select, join, save; and writing files whole or not at all."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from fastsnn_core import state
from fastsnn_core.files import beside, write_text


class Pair(NamedTuple):
    a: torch.Tensor
    b: object


def example(rows: int = 3):
    return {"x": Pair(torch.arange(rows * 2.0).reshape(rows, 2), (None, torch.ones(rows, dtype=torch.int8)))}


def test_select_then_join_is_the_identity():
    whole = example()
    again = state.join([state.select(whole, [i]) for i in range(3)])
    assert isinstance(again["x"], Pair)
    assert torch.equal(again["x"].a, whole["x"].a)
    assert again["x"].b[0] is None
    assert [name for name, _ in state.leaves(whole)] == ["x.0", "x.1.1"]


def test_bytes_and_detach():
    assert state.nbytes(example()) == 3 * 2 * 4 + 3
    live = torch.ones(1, requires_grad=True) * 2
    assert not state.detach((live,))[0].requires_grad


def test_a_stream_can_be_saved_and_goes_on(tmp_path):
    state.save(example(), tmp_path / "s.safetensors")
    again = state.load(tmp_path / "s.safetensors", example())
    assert torch.equal(again["x"].a, example()["x"].a)
    with pytest.raises(ValueError, match="no state of this model"):
        state.load(tmp_path / "s.safetensors", {"y": torch.ones(1)})
    with pytest.raises(ValueError, match="different models"):
        state.join([example(), {"y": torch.ones(1)}])


def test_beside_is_all_or_nothing(tmp_path):
    write_text(tmp_path / "f", "old")

    def fail():
        with beside(tmp_path / "f") as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "f").read_text() == "old"
    with beside(tmp_path / "d") as scratch:
        scratch.mkdir()
        (scratch / "x").write_text("1")
    with beside(tmp_path / "d") as scratch:
        scratch.mkdir()
        (scratch / "y").write_text("2")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["y"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]
