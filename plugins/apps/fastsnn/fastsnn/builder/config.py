"""`SNNConfig`: a flat face of the decoder's spec."""

from __future__ import annotations

from typing import Any

import attrs

from fastsnn_core import Model
from fastsnn_core.errors import FastSNNError


@attrs.frozen
class SNNConfig:
    """Sizes, heads and windows of a spiking language model in one flat place.

    `attn_kind`: hybrid, hybrid_alt, linear, gla, swa (sliding_window), softmax. `neuron`: adaptive_threshold, lif_sint,
    lif, ilif, or any installed. `k` is the adaptive threshold's; `softmax_layers` get full softmax attention (for
    hybrid: as one more parallel branch).
    """

    vocab_size: int = 257
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 2
    d_ff: int = 0
    attn_kind: str = "hybrid"
    neuron: Any = "adaptive_threshold"
    k: float = 3.0
    window: int = 128
    n_kv_heads: int = 0
    softmax_layers: tuple[int, ...] = attrs.field(default=(), converter=tuple)
    tied: bool = True

    def spec(self) -> Model:
        """The decoder component this means."""
        from fastsnn.presets import model_spec
        from fastsnn_core import create
        from fastsnn_model_decoder.attention_list import attention_list

        neuron = (
            create("neuron", "adaptive_threshold", k=self.k) if self.neuron == "adaptive_threshold" else self.neuron
        )
        layers = attention_list(self.attn_kind, self.window)
        if wrong := [i for i in self.softmax_layers if not 0 <= i < self.n_layers]:
            raise FastSNNError(f"softmax_layers {wrong} are not among the layers 0 … {self.n_layers - 1}")
        if self.softmax_layers:
            cycle: list[Any] = [layers[i % len(layers)] for i in range(self.n_layers)]
            softmax = create("attention", "softmax")
            for i in self.softmax_layers:
                hybrid = cycle[i].name == "hybrid"
                cycle[i] = attrs.evolve(cycle[i], branches=(*cycle[i].branches, softmax)) if hybrid else softmax
            layers = tuple(cycle)
        return model_spec(
            "snn-tiny",
            layers,
            neuron,
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            n_kv_heads=self.n_kv_heads,
            d_ff=self.d_ff,
            tied=self.tied,
        )
