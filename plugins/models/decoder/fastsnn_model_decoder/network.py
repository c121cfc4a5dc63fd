"""The network of a `Decoder`: embedding, blocks, norm, head; whole, token by token, or by the fused step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import (
    SpikeSite,
    SpikeTensor,
)
from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import DecoderPlan
from fastsnn_events import runtime
from fastsnn_integer import quantization
from fastsnn_integer.four_bits import Embedding4
from fastsnn_integer.quantization import QuantEmbedding, row_linear
from fastsnn_integer.ternary import make_ternary
from fastsnn_model_decoder import prefill, prompt_pack
from fastsnn_model_decoder.fused_calls import FusedCalls, plan_of
from fastsnn_model_decoder.layers import AttentionLayer, Block, BlockState, any_rotary, init_thresholds, initialise
from fastsnn_model_decoder.rope import BLOCK
from fastsnn_modules.inputs import (
    StateError,
    belongs,
    check_input_device,
    check_reset_mask,
    check_state_kind,
    named_tokens,
    refuse_trace,
    token_input,
)
from fastsnn_modules.shown import model_html
from fastsnn_modules.torch_calls import TorchCalls

if TYPE_CHECKING:
    from fastsnn_model_decoder import Decoder

POSITION_SPREAD = 0.02  # of learned positions at the beginning
NORMS: dict[str, type[nn.Module]] = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}


class DecoderState(NamedTuple):
    """State of a stream: how many tokens it has seen ``[B]``, and the layers' states."""

    position: Tensor
    embed: Any
    layers: tuple[BlockState, ...]
    head: Any


class DecoderModule(FusedCalls, TorchCalls):
    """The network of a `Decoder`."""

    batch_invariant = False
    positions: nn.Parameter | None

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.spec = spec

        def site(name: str, features: int) -> SpikeSite:
            neuron = spec.neuron_at(name)
            made = SpikeSite(neuron.build(features) if neuron else None, features, centred=name in spec.centred)
            made.name = name
            return made

        def norm() -> nn.Module:
            return NORMS[spec.norm](spec.d_model, eps=spec.norm_eps)

        qk_norm = spec.norm_eps if spec.qk_norm else 0.0
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        rows = nn.Parameter(torch.empty(spec.learned_positions, spec.d_model)) if spec.learned_positions else None
        self.register_parameter("positions", rows)
        if rows is not None:
            nn.init.normal_(rows, std=POSITION_SPREAD)
        self.embed_site = site("embed", spec.d_model)
        self.layers = nn.ModuleList()
        for i in range(spec.n_layers):
            kind = spec.attention[i % len(spec.attention)]
            attention = AttentionLayer(
                kind,
                spec.dims,
                site,
                bias=spec.qkv_bias,
                out_bias=spec.out_bias,
                qk_norm=qk_norm,
                out_norm=spec.norm_eps if spec.out_norm else 0.0,
            )
            d_ff = spec.d_ff or -(-8 * spec.d_model // 24) * 8
            self.layers.append(Block(attention, spec.feedforward, d_ff, site, norm))
        self.norm = norm()
        self.head_site = site("head", spec.d_model)
        self.head = None if spec.tied else nn.Linear(spec.d_model, spec.vocab_size, bias=spec.head_bias)
        tied_bias = nn.Parameter(torch.zeros(spec.vocab_size)) if spec.tied and spec.head_bias else None
        self.register_parameter("tied_bias", tied_bias)
        self.rotary = self.positions is None and any(any_rotary(a) for a in spec.attention)
        self.register_buffer("frequencies", spec.rope.frequencies(spec.dims.head_dim), persistent=False)
        self.checkpointing = False
        if spec.weights == "ternary":
            make_ternary(self.layers)
        initialise(self, spec.n_layers)
        init_thresholds(self, spec.vocab_size, spec.learned_positions)
        self.table: tuple[Tensor, Tensor] | None = None
        self.fused: Any = None  # the fused step, made when first asked for
        self.fast_step: dict[str, Any] = {"kernel": None, "why": "not asked for yet"}
        if spec.quant:
            quantization.apply(self, spec.quant)

    def _repr_html_(self) -> str:
        return model_html(self)

    def generate(self, prompt: Any = None, max_tokens: int = 128, **settings: Any) -> Any:
        """What the model writes after `prompt`; `settings`: temperature (0 is greedy), top_p, top_k, seed, stop.

        A text gives the text after it. Token ids ``[T]`` or ``[1, T]`` give ids of the same form, the prompt's first,
        as other libraries have it, whose names for arguments are taken (``max_new_tokens``). Needs fastsnn-text.
        """
        from fastsnn_text import generate_after

        return generate_after(self, prompt, max_tokens, **settings)

    def forward(
        self,
        tokens: Tensor | None = None,
        state: DecoderState | None = None,
        *,
        reset: Tensor | None = None,
        return_state: bool = False,
        last: bool = False,
        head: bool = True,
        **named: Any,
    ) -> Any:
        """Logits of ``tokens [B,T]``; `reset` ``[B,T]`` marks first tokens of documents, `last` wants only the last.

        Without `head`, what the head reads in place of the logits: the last hidden states ``[B,T,D]``, as spikes where
        the head has a site.

        ``model(input_ids=ids, attention_mask=mask)`` is the same call in transformers' names, for texts without
        padding, or padded on the right (`fastsnn_modules.inputs.named_tokens`).
        """
        refuse_trace(self, tokens)
        if named or tokens is None:
            tokens = named_tokens(tokens, named, carries=return_state or state is not None)
        tokens = token_input(tokens, self.spec.vocab_size)
        check_input_device("decoder", getattr(self.embed, "weight", None), tokens)
        if not getattr(state, "deferred", False):  # one whose parts arrive later is checked part by part
            check_state_kind("decoder", state, DecoderState, "the one that return_state=True gave")
            if state is not None and len(state.layers) != len(self.layers):
                held = len(state.layers)
                raise StateError(f"decoder: the state is of {held} layers, the model has {len(self.layers)}")
            belongs("decoder", state, tokens.shape[0])
        check_reset_mask("decoder", reset, tokens.shape[0], tokens.shape[1], tokens.device)
        places, position = positions(tokens, None if state is None else state.position, reset)
        angles = self.angles(places) if self.rotary else None
        x = self.embedded(tokens, places)
        kind = x.dtype
        x, embed = self.embed_site(x, None if state is None else state.embed, reset)
        x = x if isinstance(x, Tensor) else x.value().to(kind)
        news: list[BlockState] = []
        fused = prefill.prefill_applies(self, tokens)
        if fused:
            x, news = prefill.prefill_blocks(self, x, state, reset, angles)
        for i, layer in enumerate(() if fused else self.layers):
            old = None if state is None else state.layers[i]
            if self.checkpointing and self.training:
                x, new = torch.utils.checkpoint.checkpoint(layer, x, old, reset, angles, use_reentrant=False)
            else:
                x, new = layer(x, old, reset, angles)
            news.append(new)
        if fused and last and prefill.by_row(self.head_site):
            x = x[:, -1:]
        spikes, at_head = self.head_site(self.norm(x), None if state is None else state.head, reset)
        if last:
            spikes = newest_token(spikes)
        out = self.logits(spikes) if head else spikes
        return (out, DecoderState(position, embed, tuple(news), at_head)) if return_state else out

    @property
    def longest(self) -> int | None:
        """Tokens that a text may have; None: as many as one likes."""
        return None if self.positions is None else len(self.positions)

    def embedded(self, tokens: Tensor, places: Tensor) -> Tensor:
        """E[tokens], and the rows of their places ``[B,T]`` where positions are learned; there are only so many."""
        x = self.embed(tokens)
        if self.positions is None:
            return x
        if places.numel() and int(places.max()) >= len(self.positions):
            raise FastSNNError(f"the model has learned {self.longest} positions; this text is longer")
        return x + self.positions[places].to(x.dtype)

    def logits(self, spikes: Any) -> Tensor:
        """W h + b of last hidden states ``[B,T,D]``; W is the head, or the embedding it is tied to."""
        if self.head is not None:
            logits = self.head(spikes)
        elif isinstance(self.embed, QuantEmbedding | Embedding4):
            logits = self.embed(spikes)
        elif self.batch_invariant:
            logits = row_linear(spikes, self.embed.weight)
        else:
            logits = F.linear(spikes, self.embed.weight)
        return logits if self.tied_bias is None else logits + self.tied_bias.to(logits.dtype)

    def lower(self) -> DecoderPlan:
        """The network as numbers and tensors, for a fused decoding step; `Unsupported` says what has no fused form."""
        return plan_of(self)

    def read_together(
        self, prompts: Sequence[Sequence[int]], states: Sequence[DecoderState | None]
    ) -> list[tuple[Tensor, DecoderState]]:
        """``(logits [1,1,V], state)`` after each of several prompts, in one pass over the weights where that can be.

        The bits are those of ``model(ids[None], state, return_state=True, last=True)``, one by one.
        """
        return prompt_pack.read_together(self, DecoderState, prompts, states)

    def __getstate__(self) -> dict[str, Any]:
        """Copies make a fused step of their own."""
        return self.__dict__ | {"fused": None}

    def runtime(self, mode: str, coder: Any = None, steps: str | int = "auto", **options: Any) -> DecoderModule:
        """Switch to the "count" or the "event" runtime (`fastsnn_events.switch_runtime`); returns this model."""
        runtime.switch_runtime(self, mode, coder, steps, **options)
        return self

    def angles(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions ``[B,T]``; from a table where they must be the same bits for everyone."""
        if not self.batch_invariant:
            return self.spec.rope.angles(places, self.frequencies)
        blocks = 1 << (int(places.max()) // BLOCK if places.numel() else 0).bit_length()
        if self.table is None or len(self.table[0]) < blocks * BLOCK or self.table[0].device != places.device:
            self.table = self.spec.rope.table(blocks, self.frequencies)
        cos, sin = self.table
        return cos[places], sin[places]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Frequencies stay float64 whatever the model is cast to; integer arithmetic is not cast to half precision."""
        if self.spec.quant:
            quantization.refuse_half(fn)
        super()._apply(fn, recurse)
        self.frequencies = self.spec.rope.frequencies(self.spec.dims.head_dim).to(self.embed.weight.device)
        return self


def newest_token(x: SpikeTensor | Tensor) -> SpikeTensor | Tensor:
    """The last token of ``[B,T,D]``; spikes stay spikes (indexing them would give their values)."""
    if isinstance(x, Tensor):
        return x[:, -1:]
    scale = x.scale[:, -1:] if x.scale.ndim == 3 and x.scale.shape[1] > 1 else x.scale
    if x.form == "dense":
        return SpikeTensor.from_train(x.train[:, :, -1:], x.weights, scale, x.coder)
    return SpikeTensor(x.counts[:, -1:], scale)


def positions(tokens: Tensor, before: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Place of each token in its document ``[B,T]``, and how many tokens the stream's last document has ``[B]``."""
    b, t = tokens.shape
    before = tokens.new_zeros(b) if before is None else before
    count = torch.arange(t, device=tokens.device).expand(b, t)
    places = before[:, None] + count
    if reset is not None:
        start = torch.where(reset, count, -1).cummax(1).values  # last reset so far, -1: none in this piece
        places = torch.where(start >= 0, count - start, places)
    return places, places[:, -1] + 1 if t else before
