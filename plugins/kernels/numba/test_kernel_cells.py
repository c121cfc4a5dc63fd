"""cell_scan in Numba: the naive twin's bits in any shape and on any number of threads; every cell against its loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_core import create, ops
from fastsnn_core.plugins import registry
from fastsnn_kit.kernels import check_identical
from fastsnn_leaky import cells
from fastsnn_leaky.cell_adjoint import programs_of
from fastsnn_leaky.cell_scan import CELL_SCAN, CELL_SCAN_BACKWARD
from fastsnn_leaky.cell_tape import record_step

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def drawn_step(across, weight):
    def step(x, row):
        v, a = row
        u = 0.5 * v + weight * x + 0.1 * (x - v).exp()
        if across:
            u = u - 0.1 * (a.sum(1, keepdim=True) - a.shifted(1))
        s = u.spike(lambda u: 1 / (1 + (u - 1) ** 2))
        return u, s, (torch.where(s.detach() > 0, torch.zeros_like(u), u), 0.5 * a + s)

    return step


@quick
@given(
    st.integers(0, 3), st.sampled_from([0, 1, 2, 127, 128, 129, 260]), st.sampled_from([0, 1, 3, 37, 300]),
    st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["random", "special"]), st.integers(1, 2),
)  # fmt: skip
def test_the_naive_twins_bits(batch, steps, wide, across, resets, kind, values, threads):
    torch.manual_seed(steps)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(batch, steps, wide, dtype=kind)
        if values == "special" and x.numel():
            x.view(-1)[:: max(1, x.numel() // 5)] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])[steps % 4]
        weight = torch.rand(wide, dtype=kind)
        tape, outs, new = record_step(drawn_step(across, weight), torch.empty(batch, wide, dtype=kind), 2)
        programs = programs_of(tuple(tape.entries), outs, new, tape.double)
        keep = torch.rand(batch, steps) > 0.2 if resets else torch.empty(0, 0, dtype=torch.bool)
        states, held = torch.randn(2, batch, wide, dtype=kind), torch.stack(tape.operands)
        given_ = x, states, held, keep, programs.forward
        right = CELL_SCAN.naive(*given_)
        check_identical(CELL_SCAN("cpu", *given_), right, "forward")
        assert CELL_SCAN.path == "numba"
        grad, carry = torch.randn(right[0].shape, dtype=kind), torch.randn(right[1].shape, dtype=kind)
        given_ = grad, carry, x, right[2], held, keep, programs.advance, programs.backward
        check_identical(CELL_SCAN_BACKWARD("cpu", *given_), CELL_SCAN_BACKWARD.naive(*given_), "backward")
    finally:
        torch.set_num_threads(before)


VARIANTS = {"lateral_lif": ({"reach": 0}, {"reach": 2}), "plif": ({"per_channel": True}, {"hard_reset": False})}
CELLS = [
    (name, how)
    for name in ("alif", "axonal_delay", "eif", "izhikevich", "lateral_lif", "plif", "qif", "refractory_lif")
    if name in registry().names("neuron")
    for how in VARIANTS.get(name, ({},))
]


@pytest.mark.parametrize(("name", "how"), CELLS)
@pytest.mark.parametrize("surrogate", ["atan", "triangle"])
@pytest.mark.parametrize("resets", [False, True])
def test_a_cell_is_its_loop(name, how, surrogate, resets):
    if surrogate not in registry().names("surrogate"):
        pytest.skip(f"surrogate {surrogate} is not installed")
    torch.manual_seed(0)
    neuron = create("neuron", name, fixed=True, surrogate=create("surrogate", surrogate), **how).build(19).double()
    x, reset = torch.randn(3, 140, 19).double(), torch.rand(3, 140) < 0.1 if resets else None
    state = tuple(0.3 * torch.rand(3, 19).double() for _ in neuron.parts)
    found = []
    for loop in (False, True):
        neuron.zero_grad()
        leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in state)]
        with pytest.MonkeyPatch.context() as patch:
            if loop:
                for module in (cells, __import__(f"fastsnn_neuron_{name}")):
                    patch.setattr(module, "compiled_steps", lambda *a: None, raising=False)
            spikes, row = neuron(leaves[0], tuple(leaves[1:]), reset)
        assert loop or ops.paths()["cell_scan"] == "numba"
        weight = torch.linspace(-1, 1, x.numel()).double().cos().reshape(x.shape)
        (spikes.counts * weight).sum().add(sum((r * r).sum() for r in row)).backward()
        gradients = [p.grad.clone() for p in neuron.parameters() if p.grad is not None]
        found.append([spikes.counts, *row, *(leaf.grad for leaf in leaves), *gradients])
    assert 0 < float(found[0][0].detach().mean()) < 1
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
