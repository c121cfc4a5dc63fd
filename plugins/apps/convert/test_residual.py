"""A deep residual network with batch norms, trained here: what few spike steps cost it in accuracy."""

from __future__ import annotations

import gzip
import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert import convert

DATA = Path(os.environ.get("FASTSNN_DATA", "../shared/data")) / "mnist"


def digits(part: str, count: int) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 14, 14]`` of half the size, and labels."""
    found = []
    for kind, head in (("images-idx3", 16), ("labels-idx1", 8)):
        path = DATA / f"{part}-{kind}-ubyte.gz"
        if not path.is_file():
            pytest.skip(f"no {path}; set FASTSNN_DATA")
        found.append(torch.from_numpy(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=head).copy()))
    images = F.avg_pool2d(found[0].view(-1, 1, 28, 28)[:count].float() / 255, 2)
    return images, found[1][:count].long()


class Block(nn.Module):
    """relu(x + f(x)), f two convolutions with norms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
            if stride == 2
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


def resnet20(width: int) -> nn.Module:
    """Nineteen convolutions, nine additions."""
    widths = [width, width, width, width, 2 * width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width]
    blocks = [Block(a, b) for a, b in itertools.pairwise(widths)]
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


@pytest.mark.slow
def test_few_steps_cost_a_residual_network_little():
    torch.manual_seed(0)
    images, labels = digits("train", 20_000)
    net = resnet20(8)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=len(images) // 100)
    for rows in torch.randperm(len(images)).split(100):
        optimizer.zero_grad()
        F.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    unseen, wanted = digits("t10k", 4_000)

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float(
                torch.cat([model.eval()(x).argmax(-1) for x in unseen.split(500)]).eq(wanted).float().mean()
            )

    dense = right(net)
    assert dense > 95
    for steps, points in ((4, 1.0), (3, 3.0)):
        began = time.process_time()
        done = convert(net, calibration=images[:512], steps=steps)
        assert time.process_time() - began < 60  # of processor time
        assert right(done.model) > dense - points, f"{steps} steps: {right(done.model):.2f} of {dense:.2f} %"
