"""What the fused paths run is what the modules say: constants, look-alikes, nested branches, changes after a plan."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from test_fast_decoding import network

from fastsnn_core import ops


@torch.inference_mode()
def agree(model, prompt=6, tokens=40):
    """The fused step, where it is taken, and the prompt kernels give the modules' own bits."""
    ids = torch.randint(0, 37, (1, tokens), generator=torch.Generator().manual_seed(1))
    with ops.use("naive"):
        wanted = model(ids)
    assert torch.equal(model(ids), wanted), "the prompt kernels give other bits"
    _, state = model(ids[:, :prompt], return_state=True)
    stream = model.fast(state)
    if stream is not None:
        for t in range(prompt, prompt + 12):
            assert torch.equal(stream.step(int(ids[0, t])), wanted[0, t]), f"token {t}: {model.fast_step}"
    return model.fast_step


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_a_linear_attention_that_fades(decay):
    agree(network(attention=[{"kind": "linear", "decay": decay}]))


def test_a_hybrid_inside_a_hybrid():
    inner = {"kind": "hybrid", "branches": [{"kind": "sliding_window", "window": 5}, {"kind": "linear"}]}
    agree(network(attention=[{"kind": "hybrid", "branches": [inner, {"kind": "gla", "rank": 4}]}]))


def test_numbers_that_change_after_the_first_plan():
    model = network(attention=[{"kind": "gla", "rank": 4}])
    agree(model)
    model.layers[0].attention.mixer.tau = 1.0
    agree(model)
    model.layers[1].feedforward.inner.blend = 0.5
    assert "blend" in agree(model)["why"]
