"""Any composition in half precision: it runs, carries its state and is saved, or it is refused at the cast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_core import SpikeTensor, build, bundle
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import strategies


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from([torch.bfloat16, torch.float16, torch.float64]))
def test_a_drawn_model_runs_in_another_precision(data: Any, kind: torch.dtype, tmp_path_factory: Any) -> None:
    spec = data.draw(strategies.components("model", only=data.draw(st.sampled_from(["decoder", "sequential"]))))
    model = build(spec).eval()
    x = spec.example(2)
    dtypes = {p.dtype for p in model.parameters()}
    try:
        model.to(kind)
    except FastSNNError as reason:
        assert "float32" in str(reason)  # refused once, clearly, and nothing was changed
        assert {p.dtype for p in model.parameters()} == dtypes
        return
    cast = tuple(t.to(kind) if t.is_floating_point() else t for t in (x if isinstance(x, tuple) else (x,)))
    with torch.no_grad():
        y, state = model(*cast, return_state=True)
        model(*cast, state=state)
    y = y.value() if isinstance(y, SpikeTensor) else y
    assert y.is_floating_point()
    assert y.isfinite().all()
    where = tmp_path_factory.mktemp("half") / "m.snn"
    bundle.save(model, where)
    again = bundle.load(where)
    if not any(t.dtype == kind for t in model.state_dict().values()):
        again.to(kind)  # nothing in the file is of that type, so nothing in it says the precision
    with torch.no_grad():
        out = again(*cast)
    assert torch.equal(out.value() if isinstance(out, SpikeTensor) else out, y)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_loss_is_that_of_the_rounded_weights(kind: torch.dtype) -> None:
    """Computing in half precision moves the logits no more than rounding the weights does, to a factor of two."""
    from fastsnn_core import create

    off, moved = 0.0, 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        model = build(create("model", "decoder", vocab_size=33, d_model=32, n_heads=2, n_layers=2, d_ff=32)).eval()
        tokens = torch.randint(0, 33, (4, 16))
        with torch.no_grad():
            exact = model(tokens)
            for p in model.parameters():
                p.copy_(p.to(kind))
            rounded = model(tokens)
            cast = model.to(kind)(tokens).float()
        moved += float((rounded - exact).norm() / exact.norm())
        off += float((cast - exact).norm() / exact.norm())
    assert off < 2 * moved + 0.02


@pytest.mark.parametrize(("kind", "large"), [(torch.bfloat16, 301), (torch.float16, 65537)])
def test_half_precision_weights_sum_whole_counts(kind: torch.dtype, large: int) -> None:
    """Counts that the weights' type cannot hold: rounded before the sum, the difference would be 0 or 2."""
    spikes = SpikeTensor(torch.tensor([[large, 1 - large]], dtype=torch.int32), torch.tensor(1.0))
    assert torch.nn.functional.linear(spikes, torch.ones(1, 2, dtype=kind)).item() == 1
