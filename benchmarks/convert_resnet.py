"""Deep residual image networks converted: seconds it takes, and accuracy against steps.

    python benchmarks/convert_resnet.py [--weights FILE] [--only accuracy,cifar,imagenet] [--json FILE]

*accuracy*: a ResNet-20 of width 8 (batch norms, nine residual additions) on MNIST, trained here for one epoch unless
``--weights`` names a state dict of an earlier run (it is written there), at 2, 3, 4, 5 and 8 steps, thresholds chosen
on 512 training images without labels. *cifar*: a ResNet-20 of the usual width on 3x32x32 images with 512 calibration
images. *imagenet*: a ResNet-50 on 3x224x224 images. Those two have random weights: only their seconds count, wall and
CPU (of this process, one thread); ``passes`` is the CPU time in dense passes over the same images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from convert_images import DATA, FIXED, idx
from harness import emit, table
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert import convert
from fastsnn_convert.modules.accuracy_vs_steps import accuracy

PIECES = ("accuracy", "cifar", "imagenet")


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.down = nn.ReLU(inplace=True), shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """relu(x + f(x))."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, four times as wide behind as inside."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.down = nn.ReLU(inplace=True), shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """relu(x + f(x))."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """1x1 convolution and norm where the shape changes."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """He et al. 2016, for small images (`stem` 3x3) or large ones (7x7 and a pool)."""

    def __init__(self, block: Any, stem: nn.Module, widths: list[int], depths: list[int], classes: int) -> None:
        super().__init__()
        self.stem, blocks, inputs = stem, [], stem[0].out_channels  # type: ignore[index]
        for i, (width, depth) in enumerate(zip(widths, depths)):
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i and not j else 1))
                inputs = width
        self.blocks, self.pool, self.fc = nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


def resnet20(width: int, channels: int) -> nn.Module:
    """Nineteen convolutions, nine additions."""
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return ResNet(Basic, stem, [width, 2 * width, 4 * width], [3, 3, 3], 10)


def resnet50() -> nn.Module:
    """Fifty-three convolutions, sixteen additions."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return ResNet(Bottleneck, stem, [256, 512, 1024, 2048], [3, 4, 6, 3], 1000)


def trained(weights: Path | None) -> nn.Module:
    """The ResNet-20 of width 8 after one epoch of MNIST."""
    torch.manual_seed(0)
    net = resnet20(8, 1)
    if weights is not None and weights.is_file():
        net.load_state_dict(torch.load(weights, weights_only=True))
        return net.eval()
    images = idx("train-images-idx3-ubyte.gz").float()[:, None] / 255
    labels = idx("train-labels-idx1-ubyte.gz").long()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=len(images) // 100)
    for rows in torch.randperm(len(images)).split(100):
        optimizer.zero_grad()
        F.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    if weights is not None:
        torch.save(net.state_dict(), weights)
    return net.eval()


def converted(net: nn.Module, data: Tensor, **options: Any) -> tuple[Any, dict[str, float]]:
    """A conversion, and what it took."""
    with torch.no_grad():
        began = time.process_time()
        for piece in data.split(64):
            net(piece)
        dense = time.process_time() - began
    wall, cpu = time.perf_counter(), time.process_time()
    done = convert(net, calibration=data, neuron=FIXED, **options)
    cpu = time.process_time() - cpu
    return done, {"seconds": time.perf_counter() - wall, "cpu": cpu, "passes": cpu / dense}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--json", help="write the figures here")
    args.add_argument("--only", default=",".join(PIECES), help=f"pieces, with commas, out of {', '.join(PIECES)}")
    args.add_argument("--weights", type=Path, help="the trained ResNet-20's state dict, read or written")
    args.add_argument("--images", type=int, default=10_000, help="test images")
    args.add_argument("--steps", default="2,3,4,5,8", help="of the accuracy rows, with commas")
    args.add_argument("--large", type=int, default=64, help="calibration images of the ResNet-50")
    opts = args.parse_args()
    torch.set_num_threads(1)
    pieces, found = set(opts.only.split(",")), {}
    if "accuracy" in pieces:
        if not (DATA / "mnist").is_dir():
            raise SystemExit(f"no MNIST under {DATA}; set FASTSNN_DATA")
        net = trained(opts.weights)
        images = idx("t10k-images-idx3-ubyte.gz").float()[: opts.images, None] / 255
        labels = idx("t10k-labels-idx1-ubyte.gz").long()[: opts.images]
        calibration = idx("train-images-idx3-ubyte.gz").float()[:512, None] / 255
        dense, rows = accuracy(net, images, labels), []
        for steps in map(int, opts.steps.split(",")):
            done, took = converted(net, calibration, steps=steps)
            share, quality = accuracy(done.model, images, labels), done.report["quality"]
            figures = {k: quality[k] for k in ("output_error", "silent_fraction", "spikes_per_channel")}
            rows.append({"steps": steps, "accuracy": share, "lost": dense - share, **took, **figures})
            print(rows[-1], flush=True)
        found["accuracy"] = {"dense": dense, "images": len(images), "rows": rows}
        lines = []
        for r in rows:
            cells = [f"{r['accuracy']:.2%}", f"{100 * r['lost']:.2f}", f"{r['output_error']:.3f}", f"{r['cpu']:.0f}"]
            lines.append([r["steps"], *cells])
        print(f"dense {dense:.2%}\n" + table(["steps", "accuracy", "points lost", "output error", "CPU s"], lines))
    for name, net, data in (
        ("cifar", lambda: resnet20(16, 3), lambda: torch.rand(512, 3, 32, 32)),
        ("imagenet", resnet50, lambda: torch.rand(opts.large, 3, 224, 224)),
    ):
        if name in pieces:
            torch.manual_seed(0)
            _, found[name] = converted(net().eval(), data(), steps=4)
            print(name, found[name], flush=True)
    emit(found, opts.json)


if __name__ == "__main__":
    main()
