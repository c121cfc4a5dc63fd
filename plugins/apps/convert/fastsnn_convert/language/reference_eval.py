"""What a converted language model says on held-out text, beside the dense model: divergence and perplexities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert.language.output_sensitivity import LOGITS, PIECE, nothing

MEASURED = 4e12
"""Operations that reading held-out text may take, dense and spiking together (some 40 s on two cores)."""


def affordable(model: Any, length: int, budget: float = MEASURED) -> int:
    """How many windows of `length` tokens are measured: as many as the budget of operations pays, 4 … 32."""
    size = max(1, sum(p.numel() for p in model.parameters()))
    return int(min(32, max(4, budget / (4.0 * size * length))))


@attrs.frozen(eq=False)
class HeldOutReference:
    """Windows ``tokens [N,T]`` that nothing was fitted on, and what the dense model says there.

    Its log-probabilities ``[N,T,V]`` are too many to be kept: `hidden` ``[N,T,D]`` is what its head reads, `head`
    ``[V,D]`` the head's weights.
    """

    tokens: Tensor
    hidden: Tensor
    head: Tensor

    @classmethod
    def of(
        cls, dense: nn.Module, tokens: Tensor, *, own: bool = False, step: Callable[[], Any] = nothing
    ) -> HeldOutReference:
        """Of a dense decoder; with `own` its head is copied, since the model's weights are about to be trained."""
        head = head_weight(dense)
        return cls(tokens, hidden_of(dense, tokens, step), head.clone() if own else head)

    def first(self, windows: int) -> HeldOutReference:
        """The first few windows."""
        return HeldOutReference(self.tokens[:windows], self.hidden[:windows], self.head)

    def windows(self, model: nn.Module, step: Callable[[], Any] = nothing) -> Windows:
        """Every window's figures."""
        hidden, weight = hidden_of(model, self.tokens, step), head_weight(model)
        rows = [self.window(i, hidden[i], weight) for i in range(len(self.tokens))]
        return Windows(*torch.tensor(rows, dtype=torch.float64).T)

    def compare(self, model: nn.Module) -> tuple[float, float]:
        """``(KL(dense ‖ model), cross-entropy of the model)`` in nats per token."""
        found = self.windows(model)
        return float(found.kl.mean()), float(found.nats.mean())

    @torch.no_grad()
    def window(self, number: int, hidden: Tensor, weight: Tensor) -> tuple[float, float, float]:
        """KL, and the cross-entropies of the model and of the dense one, of one window; logits a piece at a time."""
        size = max(1, LOGITS // len(weight))
        labels = self.tokens[number, 1:]
        kl = nats = dense = 0.0
        for at in range(0, len(hidden), size):
            here = slice(at, at + size)
            said = F.linear(hidden[here], weight).float().log_softmax(-1)
            wanted = F.linear(self.hidden[number, here], self.head).float().log_softmax(-1)
            kl += float(F.kl_div(said, wanted, log_target=True, reduction="none").sum(-1).double().sum())
            label = labels[here]
            nats += float(F.nll_loss(said[: len(label)], label, reduction="sum"))
            dense += float(F.nll_loss(wanted[: len(label)], label, reduction="sum"))
        scored = max(1, len(labels))
        return kl / len(hidden), nats / scored, dense / scored


@attrs.frozen(eq=False)
class Windows:
    """Of each window ``[N]``, nats per token: KL(dense ‖ model), cross-entropy of the model and of the dense one."""

    kl: Tensor
    nats: Tensor
    dense: Tensor

    def figures(self) -> dict[str, Any]:
        """Perplexities, their ratio, KL, each with its standard error over windows (None for a single window)."""

        def spread(t: Tensor) -> float | None:
            return float(t.std() / len(t) ** 0.5) if len(t) > 1 else None

        def scaled(factor: float, error: float | None) -> float | None:
            return None if error is None else factor * error

        dense, here = float(self.dense.mean().exp()), float(self.nats.mean().exp())
        more = self.nats - self.dense
        return {
            "perplexity_dense": dense,
            "perplexity_dense_error": scaled(dense, spread(self.dense)),
            "perplexity": here,
            "perplexity_error": scaled(here, spread(self.nats)),
            "ratio": here / dense,
            "ratio_error": scaled(here / dense, spread(more)),
            "kl": float(self.kl.mean()),
            "kl_error": spread(self.kl),
        }


def head_weight(model: Any) -> Tensor:
    """The head's weights ``[V,D]``."""
    return (model.embed if model.head is None else model.head).weight.detach()


@torch.no_grad()
def hidden_of(model: Any, tokens: Tensor, step: Callable[[], Any] = nothing) -> Tensor:
    """What the head of a decoder reads ``[N,T,D]``, spikes as numbers, in evaluation mode."""
    training, rows = model.training, max(1, PIECE // tokens.shape[1])
    found: list[Tensor] = []
    handle = model.head_site.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model.eval()
    try:
        for piece in tokens.split(rows):
            model(piece, last=True)  # the hook takes all tokens; the head reads the last alone
            step()
        handle.remove()
        whole = torch.cat(found)
        spikes = model.head_site(whole)[0]
        return spikes if isinstance(spikes, Tensor) else spikes.value()
    finally:
        handle.remove()
        model.train(training)
