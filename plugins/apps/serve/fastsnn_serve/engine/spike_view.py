"""Spike statistics of a decode step: silent channels per layer, and weight bytes that sparsity lets it skip."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from fastsnn_core.probe import Record, probe
from fastsnn_core.spike_tensor import SpikeTensor


class SpikeView:
    """Context manager that records spike statistics of a model through forward hooks.

    `layers`: ``(name, channels, silent channels)`` of each spiking module, in order of execution. `weight_bytes`: size
    of all weight matrices used; `silent_bytes`: the part of it that is multiplied by inputs without a spike.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.stack = model, ExitStack()
        self.layers: list[tuple[str, int, int]] = []
        self.weight_bytes = self.silent_bytes = 0.0

    def __enter__(self) -> SpikeView:
        self.stack.enter_context(probe(self.model, self.see))
        for module in self.model.modules():
            self.stack.callback(module.register_forward_pre_hook(self.weigh).remove)
        return self

    def __exit__(self, *why: Any) -> None:
        self.stack.close()

    def see(self, name: str, record: Record) -> None:
        """Record the output of a spiking module."""
        counts = record.spikes.counts
        self.layers.append((name, counts.numel(), int((counts == 0).sum())))

    def weigh(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Add the bytes of a weight matrix, and of the part whose inputs are silent."""
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding) or not args:
            return
        size = float(weight.numel() * weight.element_size())
        self.weight_bytes += size
        if isinstance(args[0], SpikeTensor):
            self.silent_bytes += size * float((args[0].counts == 0).float().mean())

    @property
    def channels(self) -> int:
        """Channels of all layers."""
        return sum(n for _, n, _ in self.layers)

    @property
    def silent(self) -> int:
        """Channels of all layers without a spike."""
        return sum(silent for _, _, silent in self.layers)

    def json(self) -> dict[str, Any]:
        """The JSON sent to clients: silent fractions (0 to 1) and bytes."""
        return {
            "layers": [{"name": name, "silent": round(silent / max(1, n), 4)} for name, n, silent in self.layers],
            "silent_fraction": round(self.silent / max(1, self.channels), 4),
            "weight_bytes": int(self.weight_bytes), "silent_bytes": int(self.silent_bytes),
        }  # fmt: skip
