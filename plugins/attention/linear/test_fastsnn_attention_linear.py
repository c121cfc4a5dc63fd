"""The conformance kit over this plugin."""

import torch

from fastsnn_core import Dims, Heads, create
from fastsnn_core.testing import conformance

test_linear = conformance("linear")


def test_a_decay_fades_what_was_stored():
    torch.manual_seed(0)
    q, k, v = (torch.rand(2, 9, 2, 4, dtype=torch.float64) for _ in range(3))
    spec = create("attention", "linear", decay=0.3, feature="relu")
    out, state = spec.build(Dims(8, 2, 2, 4))(Heads(q, k, v, q.flatten(2)))
    ages = torch.arange(9)[:, None] - torch.arange(9)
    weights = torch.einsum("bihk,bjhk->bhij", q, k) * torch.where(ages >= 0, torch.exp(-0.3 * ages), 0.0)
    expected = torch.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    fades = torch.exp(-0.3 * torch.arange(8, -1, -1.0, dtype=torch.float64))
    torch.testing.assert_close(state.z_acc, torch.einsum("bthk,t->bhk", k, fades))
