"""The network without its head, where transformers and TRL look for it: ``base_model`` and the output embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast


class Body(nn.Module):
    """``body(input_ids, …)`` gives ``last_hidden_state [B,T,D]``, which the output embeddings turn into logits.

    A view: it holds no parameters of its own, and every other attribute is the network's.
    """

    whole: Any

    def __init__(self, whole: Any) -> None:
        super().__init__()
        object.__setattr__(self, "whole", whole)  # not a submodule: `whole` holds the network already

    def forward(self, *args: Any, **named: Any) -> BaseModelOutputWithPast:
        """The arguments are those of `FastSNNForCausalLM.forward`, without labels."""
        hidden, cache = self.whole.read(*args, head=False, **named)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden if isinstance(hidden, Tensor) else hidden.value(), past_key_values=cache
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole.model, name)


class TiedHead(nn.Module):
    """The embedding as the head: ``weight [V,D]`` and ``bias [V]`` (or None) are the network's own."""

    network: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)

    @property
    def weight(self) -> Tensor:
        """The embedding's weight."""
        return self.network.embed.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the logits."""
        return self.network.tied_bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits ``[B,T,V]`` of last hidden states ``[B,T,D]``."""
        return self.network.logits(hidden)
