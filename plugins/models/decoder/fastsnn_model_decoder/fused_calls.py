"""What a decoder offers to who decodes fast: streams of the fused step, prompts as its rows, the plan it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import DecoderPlan, MatrixForm, Unsupported, lower
from fastsnn_integer.answer_meanwhile import answer_meanwhile, in_background
from fastsnn_integer.four_bits import Embedding4
from fastsnn_integer.quantization import QuantEmbedding
from fastsnn_model_decoder.fused_decode import FastStream, read_many, start_streams, step_many


class FusedCalls:
    """The fused step's calls, for `DecoderModule`."""

    def fast(self: Any, state: Any, wait: bool = True, room: int = 0) -> FastStream | None:
        """A stream that goes on from `state` (None: from the start) in the fused step; None where that cannot be.

        `fast_step` says which kernel set it is, or why there is none. Where the step has to be compiled first, that is
        waited for, or, without `wait`, begun in the background: then there is none yet. With `room`, caches are made
        for so many tokens at once, instead of growing.
        """
        return start_streams(self, [state], [room], wait)[0]

    def meanwhile(self: Any) -> AbstractContextManager[None]:
        """Inside, calls do not wait for kernels that another process is compiling: plain torch gives the same bits."""
        return answer_meanwhile(self.embed.weight.device.type) if self.batch_invariant else nullcontext()

    def in_background(self: Any) -> AbstractContextManager[None]:
        """Inside, a thread that makes a stream gives way to those who answer."""
        return in_background()

    def fast_all(
        self: Any, states: Sequence[Any], rooms: Sequence[int], wait: bool = True, within: float = 0.0
    ) -> list[FastStream | None]:
        """`fast` of several streams, whose common part (is the model as it was?) is done once.

        It is left out where it was done in the last `within` seconds: for who alone changes the model.
        """
        return start_streams(self, states, rooms, wait, within)

    def step_many(self: Any, streams: Sequence[FastStream], tokens: Sequence[int]) -> list[Tensor | FastSNNError]:
        """Logits ``[vocab]`` of one more token of each stream that `fast` made, in one pass over the weights.

        The bits are those of ``stream.step(token)`` alone, whoever else steps and wherever each stream stands. Where a
        step is refused, its place holds the error that ``step`` would have raised, and the others go on.
        """
        return step_many(streams, tokens)

    def read_many(
        self: Any, streams: Sequence[FastStream], pieces: Sequence[Sequence[int]]
    ) -> list[Tensor | FastSNNError]:
        """`step_many` of one or more next tokens of each stream: the logits after the last one of each.

        So a prompt is read, alone or beside streams that step: its tokens are rows of the same pass.
        """
        return read_many(streams, pieces)

    def lower_head(self: Any) -> MatrixForm:
        """What makes the logits of spikes: the head, or the embedding that is tied to it."""
        if self.head is not None:
            return lower(self.head, "head")
        form = lower(self.embed, "embed")
        return form if self.tied_bias is None else attrs.evolve(form, bias=self.tied_bias)

    def first_angles(self: Any, places: int) -> tuple[Tensor, Tensor]:
        """cos and sin ``[P, K/2]`` of at least the first `places` positions."""
        self.angles(torch.tensor([[places - 1]]))
        assert self.table is not None
        return self.table


def plan_of(model: Any) -> DecoderPlan:
    """`model` as numbers and tensors, for a fused decoding step; `Unsupported` says what has no fused form."""
    spec, embed = model.spec, model.embed
    if spec.quant is None:
        raise Unsupported(
            "float weights: only W8A, W4A and W1.58A models are fused; fastsnn export BUNDLE --to w8a OUT.snn"
        )
    if embed.weight.device.type != "cpu":
        raise Unsupported(f"the model is on {embed.weight.device}; the fused step runs on the CPU")
    if model.embed_site.neuron is not None or model.embed_site.centre is not None:
        raise Unsupported("spikes after the embedding have no fused form", "embed_site")
    if model.positions is not None:
        raise Unsupported("learned positions have no fused form", "positions")
    coded = isinstance(embed, QuantEmbedding)
    blocks = [attrs.evolve(lower(b, f"layers.{i}"), name=f"layers.{i}") for i, b in enumerate(model.layers)]
    return DecoderPlan(
        width=spec.d_model,
        n_heads=spec.dims.n_heads,
        n_kv_heads=spec.dims.n_kv_heads,
        head_dim=spec.dims.head_dim,
        table=lower(embed, "embed") if isinstance(embed, Embedding4) else embed.weight,
        table_scale=lower(embed, "embed").scale if coded else None,
        blocks=tuple(blocks),
        norm=lower(model.norm, "norm"),
        site=lower(model.head_site, "head_site"),
        head=model.lower_head(),
        angles=model.first_angles,
    )
