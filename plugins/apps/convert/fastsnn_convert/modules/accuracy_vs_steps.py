"""Quality against steps: accuracy curves, spike-time replay slot by slot, and early exit by confidence.

A *step* is one slot of the code in which counts are sent. Bitwise, S slots carry counts up to 2^S - 1; unary (a rate
code), S slots carry counts up to S. Layers run one after the other: a layer counts once the S slots before it are in,
so one image takes S slots per layer, S times the number of layers end to end when nothing is pipelined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.modules import convert_module
from fastsnn_convert.result import Conversion
from fastsnn_core import Coder, SpikeTensor, create
from fastsnn_core.moved import renamed

__getattr__ = renamed(__name__, {"replay": "replay_by_slots"})
PROJECTIONS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@contextlib.contextmanager
def replay_by_slots(model: nn.Module, coder: Coder | str = "bitwise") -> Iterator[dict[str, int]]:
    """Inside the block every projection that reads spikes works slot by slot, as a spiking machine would:

        y = V · Σ_s w_s (W train_s) + b

    where the train is the count under `coder` (bitwise, ternary, …). Yields the slots that each projection took. In
    integer arithmetic the output is the count runtime's, bit for bit; in floating point to rounding.
    """
    coder = create("coder", coder) if isinstance(coder, str) else coder
    taken: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, PROJECTIONS):
            handles.append(module.register_forward_hook(slot_by_slot(taken, name, coder)))
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def slot_by_slot(taken: dict[str, int], name: str, coder: Coder) -> Any:
    """A hook that computes a projection's output again, one slot at a time."""
    busy: list[bool] = []

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if busy or not args or not isinstance(args[0], SpikeTensor):
            return None
        train = coder.encode(args[0].count())
        taken[name] = len(train.train)
        kind, bias = output.dtype, module._parameters.get("bias")
        busy.append(True)
        module._parameters["bias"] = None
        try:
            total = torch.zeros_like(output)
            for weight, slot in zip(train.weights.tolist(), train.train):
                total = total + weight * module(SpikeTensor(slot.to(kind), torch.ones((), dtype=kind)))
        finally:
            module._parameters["bias"] = bias
            busy.clear()
        out = total * args[0].scale.to(kind)
        if bias is None:
            return out
        return out + (bias if isinstance(module, nn.Linear) else bias.reshape(-1, *[1] * (module.weight.ndim - 2)))

    return hook


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of images whose largest output is at the label."""
    return float((logits(model, images, batch).argmax(-1) == labels).double().mean())


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """Outputs in evaluation mode."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(piece) for piece in images.split(batch)])
    finally:
        model.train(training)


def accuracy_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    calibration: Tensor,
    steps: Sequence[int] = (1, 2, 3, 4),
    **options: Any,
) -> tuple[list[dict[str, Any]], dict[int, Conversion]]:
    """Convert at each number of steps and measure: rows for a report's ``curve``, and the conversions."""
    rows, found = [], {}
    for s in steps:
        done = convert_module(model, calibration=calibration, steps=s, **options)
        quality = done.report["quality"]
        rows.append(
            {
                "steps": s, "code": options.get("code", "bitwise"), "accuracy": accuracy(done.model, images, labels),
                "silent_fraction": quality.get("silent_fraction"),
                "spikes_per_channel": quality.get("spikes_per_channel"), "saturation": quality.get("saturation"),
            }
        )  # fmt: skip
        found[s] = done
    for done in found.values():
        done.report["curve"] = rows
    return rows, found


@attrs.define(eq=False)
class EarlyExit:
    """Networks of growing steps: an input is passed to the next one until the answer is confident.

    `models` maps steps to networks. `run` gives the outputs, the steps at which each input left, and the slots it took
    altogether: every pass starts afresh, so leaving at S steps has taken the slots of all passes up to there.
    """

    models: Mapping[int, nn.Module]

    def __attrs_post_init__(self) -> None:
        if not self.models:
            raise ConversionError("early exit needs at least one network")

    def run(self, x: Tensor, confidence: float = 0.99) -> tuple[Tensor, Tensor, Tensor]:
        """``(outputs [N, C], steps [N], slots [N])``; an input leaves where the largest probability is `confidence`."""
        order = sorted(self.models)
        left = torch.arange(len(x))
        steps, slots = torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
        outputs: Tensor | None = None
        for s in order:
            y = logits(self.models[s], x[left])
            outputs = y.new_zeros(len(x), y.shape[-1]) if outputs is None else outputs
            sure = (y.softmax(-1).amax(-1) >= confidence) | (s == order[-1])
            slots[left] += s
            outputs[left[sure]], steps[left[sure]] = y[sure], s
            left = left[~sure]
            if not len(left):
                break
        assert outputs is not None
        return outputs, steps, slots

    def measure(self, images: Tensor, labels: Tensor, confidence: float = 0.99) -> dict[str, float]:
        """Accuracy, mean steps at exit, mean slots taken, and how many left at the first network."""
        y, steps, slots = self.run(images, confidence)
        return {
            "confidence": confidence,
            "accuracy": float((y.argmax(-1) == labels).double().mean()),
            "mean_steps": float(steps.double().mean()),
            "mean_slots": float(slots.double().mean()),
            "first": float((steps == min(self.models)).double().mean()),
        }
