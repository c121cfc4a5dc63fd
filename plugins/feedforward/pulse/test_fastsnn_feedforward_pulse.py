"""The conformance kit over this plugin."""

import pytest
import torch

from fastsnn_core import SpikeSite
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import conformance
from fastsnn_feedforward_pulse import Pulse

test_pulse = conformance("pulse")


def test_shut_gates_are_exactly_zero_and_pass_gradients_on():
    torch.manual_seed(0)
    layer = Pulse(gate_threshold=0.1).build(12, 20, lambda name, n: SpikeSite(None, n))
    layer.gate_threshold[:10] = 0.0
    seen = []
    layer.hidden.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    x = torch.randn(2, 3, 12, requires_grad=True)
    layer(x)[0].sum().backward()
    gate = torch.nn.functional.silu(layer.gate(x))
    shut = gate.abs() < layer.gate_threshold
    assert shut[..., 10:].any()
    assert not shut[..., :10].any()
    assert torch.equal(seen[0] == 0, shut)
    torch.testing.assert_close(seen[0][~shut], (gate * layer.up(x))[~shut])
    assert layer.gate.weight.grad[10:].abs().sum(1).min() > 0  # straight-through: shut gates learn, too


def test_thresholds_need_a_gate():
    with pytest.raises(FastSNNError, match="gated = true"):
        Pulse(gated=False, gate_threshold=0.1)
