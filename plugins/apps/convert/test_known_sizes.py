"""Questions about shapes in a forward: constants are taken, what varies with batch or length is refused.

PYTEST_DONT_REWRITE: the assertions in the networks are Python's own.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert import ConversionError, convert
from fastsnn_core import load

FINE = {"kind": "adaptive_threshold", "k": 1e4}


class Asks(nn.Module):
    """Two layers, and a question about a shape between them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.width = how, nn.Linear(6, 8), nn.Linear(8, 3), 6

    def forward(self, x: Tensor) -> Tensor:
        how = self.how
        if how == "assert":
            assert x.shape[-1] == self.width, "another width"
            assert x.dim() in (2, 3) and x.size(-1) < 100  # noqa: PT018
        if how == "assert on data":
            assert x.abs().max() < 1e6
        if how == "torch._assert":
            torch._assert(x.shape[1] == self.width, f"{x.shape} is no [B, 6]")
        if how == "rank" and x.dim() == 2:
            x = x.unsqueeze(1)
        if how == "rank by length" and len(x.shape) == 2:
            x = x * 2
        if how == "raise" and x.shape[-1] != self.width:
            raise ValueError("another width")
        if how == "type" and x.dtype == torch.float16:
            x = x.float()
        if how == "in place and then rank":
            x.unsqueeze_(1)
            if x.ndim == 3:
                x = x[:, 0]
        h = F.relu(self.a(x))
        if how == "loop over channels":
            h = torch.stack([h[..., i] * (i + 1) for i in range(h.shape[-1])], -1)
        if how == "star":
            h = h.view(*h.shape[:-1], 2, 4).flatten(-2)
        if how == "items of a tuple":
            h = torch.cat([F.relu(part - 0.1) for part in h.chunk(2, -1)], -1)
        if how == "size as an argument":
            h = h + torch.arange(h.size(-1), dtype=h.dtype)
        if how == "integer division":
            h = h[..., torch.randperm(h.shape[-1], generator=torch.Generator().manual_seed(0))]
        y = self.b(h)
        return y.squeeze(1) if how == "rank" else y


KNOWN = (
    "assert", "assert on data", "torch._assert", "rank", "rank by length", "raise", "type", "in place and then rank",
    "loop over channels", "star", "items of a tuple", "size as an argument", "integer division",
)  # fmt: skip


@pytest.mark.parametrize("how", KNOWN)
def test_what_is_constant_is_taken(how, tmp_path):
    torch.manual_seed(0)
    model, x = Asks(how).eval(), torch.randn(40, 6)
    with torch.no_grad():
        wanted = model(x.clone())
        done = convert(model, calibration=x, neuron=FINE)
        y = done.model.eval()(x)
        assert float((y - wanted).norm() / wanted.norm()) < 0.01
        done.save(tmp_path / "a.snn")
        snn = load(tmp_path / "a.snn").eval()
        assert torch.equal(snn(x), y)
        for n in (1, 3, 7):  # whatever the batch is
            assert torch.allclose(snn(x[:n]), y[:n], atol=1e-5)


class Varies(nn.Module):
    """A layer over sequences, and a question about what is not the same for every input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if self.how == "loop over time":
            total = torch.zeros_like(h[:, 0])
            for t in range(h.shape[1]):
                total = total * 0.5 + h[:, t]
            return self.b(total)
        if self.how == "long enough" and h.shape[1] > 512:
            h = h[:, -512:]
        if self.how == "one sample" and h.shape[0] > 1:
            h = h * 2
        if self.how == "elements" and h.numel() > 10**6:
            h = h * 2
        if self.how == "data" and h.max() > 1e6:
            h = h * 2
        if self.how == "a number out of data" and float(h.max().item()) > 1e6:
            h = h * 2
        if self.how == "a flag out of data" and (h > 0).any().item():
            h = h * 2
        if self.how == "over the batch":
            h = torch.stack([row * 2 for row in h])
        return self.b(h)


@pytest.mark.parametrize(
    "how",
    [
        "loop over time",
        "long enough",
        "one sample",
        "elements",
        "data",
        "a number out of data",
        "a flag out of data",
        "over the batch",
    ],
)
def test_what_varies_is_refused(how):
    with pytest.raises(
        ConversionError, match=r"torch\.fx cannot see through .*test_known_sizes|does not treat dimension 0"
    ):
        convert(Varies(how), calibration=torch.randn(40, 5, 6))
