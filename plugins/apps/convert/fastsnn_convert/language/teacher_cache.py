"""What the teacher says, kept on disk for the next run on the same pieces: its likeliest next tokens at every place.

    KL_top = Σ_{i in top} p_i (log p_i - log q_i)  +  p_rest (log p_rest - log q_rest),      p_rest = 1 - Σ_top p_i

The tokens that are not among the `TOP` likeliest count as one, so KL_top is at most the whole divergence. A run that
finds its pieces here does not run the teacher, and has the bits of the run that wrote them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.language.distillation_loss import head_input, head_of
from fastsnn_convert.language.output_sensitivity import LOGITS

TOP = 64
"""Tokens whose probabilities are kept for a place: 512 bytes."""


class TopDivergence(torch.autograd.Function):
    """Mean KL_top of rows in nats; the logits ``[n,V]`` of ``said [n,D]`` are never held as a whole."""

    @staticmethod
    def forward(ctx: Any, said: Tensor, weight: Tensor, ids: Tensor, log_p: Tensor, rest: Tensor) -> Tensor:
        """The mean; `ids` and `log_p` ``[n,TOP]``, `rest` ``[n]`` is p_rest."""
        rows = max(1, LOGITS // len(weight))
        into = torch.empty_like(said)
        into_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = 0.0
        parts = (t.split(rows) for t in (said, ids, log_p, rest, into))
        for mine, top, log_top, other, piece in zip(*parts):
            log_q = F.linear(mine, weight).float().log_softmax(-1)
            log_q_top = log_q.gather(-1, top)
            q = log_q.exp_().scatter_(-1, top, 0.0)  # of the others
            left = q.sum(-1).clamp_min(1e-30)
            p, other = log_top.exp(), other.clamp_min(1e-30)
            total += float((p * (log_top - log_q_top)).sum() + (other * (other.log() - left.log())).sum())
            q.mul_((1.0 - other / left)[:, None]).scatter_(-1, top, log_q_top.exp() - p)
            change = q.to(said.dtype) / len(said)
            piece.copy_(change @ weight)
            if into_weight is not None:
                into_weight.addmm_(change.T, mine)
        ctx.save_for_backward(into, *([] if into_weight is None else [into_weight]))
        return said.new_tensor(total / max(1, len(said)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """What was made, times the gradient of the mean."""
        into, *into_weight = ctx.saved_tensors
        return grad * into, grad * into_weight[0] if into_weight else None, None, None, None


@attrs.frozen(eq=False)
class TeacherCache:
    """A folder of one teacher's likeliest tokens, a file for each batch of pieces."""

    teacher: nn.Module
    folder: Path

    @classmethod
    def of(cls, teacher: nn.Module, config: Any) -> TeacherCache | None:
        """Where `config.teacher_cache` says, in a folder that is named by the teacher's weights; None without it."""
        if config.teacher_cache is None:
            return None
        if config.hidden or config.activation:
            raise ConversionError("teacher_cache keeps logits alone: give hidden=0, and no activation")
        mark = hashlib.sha256()
        for name, p in teacher.named_parameters():
            mark.update(f"{name} {list(p.shape)} {float(p.detach().sum(dtype=torch.float64))!r}".encode())
        folder = Path(config.teacher_cache) / mark.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return cls(teacher, folder)

    def divergence(self, said: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
        """Mean KL_top of a student's head input ``[B,T,D]`` and head ``[V,D]`` on ``tokens [B,T]``."""
        found = [t.to(said.device) for t in self.says(tokens)]
        return TopDivergence.apply(said.flatten(0, 1), weight, found[0].long(), *found[1:])

    @torch.no_grad()
    def says(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and log probabilities ``[B·T,TOP]`` of the likeliest tokens, and p_rest ``[B·T]``."""
        raw = tokens.cpu().long().contiguous()
        name = hashlib.sha256(str(list(raw.shape)).encode() + raw.numpy().tobytes()).hexdigest()[:32]
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            try:
                held = load_file(path)
                return held["ids"], held["log_p"], held["rest"]
            except (SafetensorError, KeyError) as error:
                raise ConversionError(f"{path} cannot be read ({error}); delete it") from None
        wanted, weight = head_input(self.teacher, tokens).flatten(0, 1), head_of(self.teacher)
        ids, logs, rest = [], [], []
        for piece in wanted.split(max(1, LOGITS // len(weight))):
            log_p = F.linear(piece, weight).float().log_softmax(-1)
            log_top, top = log_p.topk(min(TOP, log_p.shape[-1] - 1), dim=-1)
            ids.append(top.int())
            logs.append(log_top)
            rest.append(log_p.exp_().scatter_(-1, top, 0.0).sum(-1))
        made = {"ids": torch.cat(ids), "log_p": torch.cat(logs), "rest": torch.cat(rest)}
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({n: t.cpu().contiguous() for n, t in made.items()}, part)
        part.replace(path)
        return made["ids"], made["log_p"], made["rest"]
