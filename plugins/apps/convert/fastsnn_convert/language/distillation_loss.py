"""What teacher and student say of the next token, and how far apart it is, a piece of the logits at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn_convert.language.output_sensitivity import LOGITS
from fastsnn_core import SpikeTensor


class Divergence(torch.autograd.Function):
    """Mean KL(softmax(wanted W_t) ‖ softmax(said W)) of rows, nats; the logits ``[n,V]`` are never held as a whole.

    Gradients of `said` ``[n,D]`` and, where it is trained, of W ``[V,D]`` are made on the way forwards.
    """

    @staticmethod
    def forward(ctx: Any, said: Tensor, weight: Tensor, wanted: Tensor, teacher: Tensor) -> Tensor:
        """The mean."""
        rows = max(1, LOGITS // len(weight))
        into = torch.empty_like(said)
        into_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = 0.0
        for mine, theirs, piece in zip(said.split(rows), wanted.split(rows), into.split(rows)):
            log_p = F.linear(theirs, teacher).float().log_softmax(-1)
            log_q = F.linear(mine, weight).float().log_softmax(-1)
            p = log_p.exp()
            total += float((p * (log_p - log_q)).sum())
            change = (log_q.exp() - p).to(said.dtype) / len(said)
            piece.copy_(change @ weight)
            if into_weight is not None:
                into_weight.addmm_(change.T, mine)
        ctx.save_for_backward(into, *([] if into_weight is None else [into_weight]))
        return said.new_tensor(total / max(1, len(said)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """What was made, times the gradient of the mean."""
        into, *into_weight = ctx.saved_tensors
        return grad * into, grad * into_weight[0] if into_weight else None, None, None


def mean_kl(said: Tensor, weight: Tensor, wanted: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL(teacher ‖ student) in nats of inputs of two heads ``[B,T,D]`` with weights ``[V,D]``."""
    return Divergence.apply(said.flatten(0, 1), weight, wanted.flatten(0, 1), teacher)


def base_decoder(model: Any) -> Any:
    """The decoder inside of a model with low-rank additions."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> Tensor:
    """The head's weights ``[V,D]``, with gradient."""
    inner = base_decoder(model)
    return (inner.embed if inner.head is None else inner.head).weight


def head_input(model: Any, tokens: Tensor) -> Tensor:
    """What the head of a decoder reads ``[B,T,D]``, spikes as numbers, with gradient."""
    found: list[Any] = []
    handle = base_decoder(model).head_site.register_forward_hook(lambda _m, _a, out: found.append(out[0]))
    try:
        model(tokens, last=True)  # the head itself reads the last token alone
    finally:
        handle.remove()
    return found[0].value() if isinstance(found[0], SpikeTensor) else found[0]
